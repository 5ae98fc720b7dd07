use std::{collections::BTreeSet, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};
use sqlx::{Connection, Row, SqliteConnection};
use troth_core::{
    identity::{AgentId, activation_tag},
    tpm::CredentialBlob,
};

use super::{
    Running,
    certificates::ders,
    common::{SoftTpm, call, operator},
    start,
};

fn vectors() -> Value {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/fixtures/vectors/agent-registrar.json"
    );
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// What the TPM of a captured registration would have found in the challenge.
async fn challenge(state_dir: &Path, id: &str) -> Vec<u8> {
    let database = format!("sqlite://{}", state_dir.join("reg_data.sqlite").display());
    let mut database = SqliteConnection::connect(&database).await.unwrap();
    let row = sqlx::query("SELECT challenge FROM pending WHERE agent_id = $1")
        .bind(id)
        .fetch_one(&mut database)
        .await
        .unwrap();
    hex::decode(row.get::<String, _>(0)).unwrap()
}

/// Both blobs are of the same parts and sizes; what is in them is random.
fn assert_same_shape(blob: &str, captured: &str) {
    let parse = |text| CredentialBlob::parse(&STANDARD.decode(text).unwrap()).unwrap();
    let (ours, keylimes) = (parse(blob), parse(captured));
    assert_eq!(ours.id_object.len(), keylimes.id_object.len());
    assert_eq!(ours.encrypted_secret.len(), keylimes.encrypted_secret.len());
}

#[tokio::test]
async fn a_captured_registration_is_answered_as_keylime_answers_it() {
    let file = vectors();
    let request = &file["registration"]["request"];
    let id = file["agent_id"].as_str().unwrap();
    let root = tempfile::tempdir().unwrap();
    let server = start(root.path()).await;
    let mut body = request.clone();
    body["member_of_a_later_version"] = json!({"x": [1]});
    let (status, answer) = server.register(id, body).await;
    assert_eq!((status, &answer["status"]), (200, &json!("Success")));
    assert_eq!(members(&answer), ["code", "results", "status"]);
    assert_eq!(members(&answer["results"]), ["blob"]);
    let captured = file["registration"]["response_blob_b64"].as_str().unwrap();
    assert_same_shape(answer["results"]["blob"].as_str().unwrap(), captured);

    let secret = challenge(root.path(), id).await;
    let tag = activation_tag(&secret, &AgentId::new(id).unwrap());
    let (status, answer) = server.activate(id, &tag).await;
    let success = json!({"code": 200, "status": "Success", "results": {}});
    assert_eq!((status, answer), (200, success));

    let (status, answer) = server.show(id).await;
    assert_eq!(status, 200);
    // Two certificates: the EK's, and the platform's behind it.
    let sent = ders(request["ekcert"].as_str().unwrap());
    let expected = json!({
        "agent_id": id,
        "ek_tpm": request["ek_tpm"],
        "ekcert": sent[0],
        "ekcert_chain": [sent[1]],
        "aik_tpm": request["aik_tpm"],
        "ip": request["ip"],
        "port": request["port"],
        "mtls_cert": request["mtls_cert"],
        "regcount": 1,
    });
    assert_eq!(answer["results"], expected);
    server.stop().await;
}

#[tokio::test]
async fn keys_of_every_kind_that_keylimes_agents_have_are_challenged() {
    let file = vectors();
    let root = tempfile::tempdir().unwrap();
    let server = start(root.path()).await;
    for case in file["other_key_types"]["cases"].as_array().unwrap() {
        let id = case["agent_id"].as_str().unwrap();
        let body = json!({
            "ek_tpm": case["ek_tpm"], "aik_tpm": case["aik_tpm"], "ekcert": null,
            "ip": "::1", "port": "9002", "mtls_cert": "disabled",
        });
        let (status, answer) = server.register(id, body).await;
        assert_eq!(status, 200, "{answer}");
        let blob = answer["results"]["blob"].as_str().unwrap();
        assert_same_shape(blob, case["blob"].as_str().unwrap());
        let secret = challenge(root.path(), id).await;
        let tag = activation_tag(&secret, &AgentId::new(id).unwrap());
        assert_eq!(server.activate(id, &tag).await.0, 200);
        let record = &server.show(id).await.1["results"];
        assert_eq!(
            (&record["ekcert"], &record["port"]),
            (&json!(null), &json!(9002))
        );
    }
    server.stop().await;
}

fn members(object: &Value) -> Vec<&str> {
    let names: BTreeSet<_> = object
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    names.into_iter().collect()
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
enum By {
    /// Over plain HTTP.
    Plain,
    /// Over TLS, without a certificate.
    Anonymous,
    /// Over TLS, as an administrator.
    Admin,
}

#[tokio::test]
async fn every_route_has_its_answers() {
    use By::{Admin, Anonymous, Plain};
    let root = tempfile::tempdir().unwrap();
    let server = start(root.path()).await;
    let tpm = SoftTpm::new();
    server.enrol("known", &tpm, tpm.registration()).await;
    let other = SoftTpm::new().registration();
    let unnamed = tpm.registration();
    let mut misnamed = tpm.registration();
    misnamed["agent_id"] = json!("a/b");
    let mut mistyped = tpm.registration();
    mistyped["ekcert"] = json!(5);
    let mut bad_port = tpm.registration();
    bad_port["port"] = json!("http");
    let no_tag = json!({ "tag": "00" });
    let bad_tag = json!({ "auth_tag": "00" });
    let invalid = "Could not register agent with invalid data";
    let (get, post, put, delete) = (Method::GET, Method::POST, Method::PUT, Method::DELETE);
    let none = Value::Null;
    // API 2.x; a row is tried under every version.
    #[rustfmt::skip]
    let common = [
        (Plain, &get, "", &none, 200, "Success"),
        (Plain, &post, "", &none, 405, "method not allowed"),
        (Plain, &get, "nothing", &none, 404, "no such path"),
        (Plain, &get, "agents/known/more", &none, 404, "no such path"),
        (Plain, &get, "agents", &none, 400, "HTTPS only"),
        (Plain, &get, "agents/known", &none, 400, "HTTPS only"),
        (Plain, &delete, "agents/known", &none, 400, "HTTPS only"),
        (Anonymous, &get, "agents", &none, 403, "Action list_registrations requires admin"),
        (Anonymous, &get, "agents/known", &none, 403, "Action read_registration requires admin"),
        (Anonymous, &get, "agents/unknown", &none, 403, "Action read_registration requires admin"),
        (Anonymous, &delete, "agents/known", &none, 403, "Action delete_registration requires"),
        (Admin, &get, "agents", &none, 200, "Success"),
        (Admin, &get, "agents/known", &none, 200, "Success"),
        (Admin, &get, "agents/known/", &none, 200, "Success"),
        (Admin, &get, "agents/unknown", &none, 404, "agent unknown not found"),
        (Admin, &get, "agents/%6bnown", &none, 400, "agent id"),
        (Admin, &delete, "agents/unknown", &none, 404, "agent unknown not found"),
        (Admin, &put, "agents", &none, 405, "method not allowed"),
        (Admin, &Method::PATCH, "agents/known", &none, 405, "method not allowed"),
        (Plain, &post, "agents", &unnamed, 400, "missing field `agent_id`"),
        (Plain, &post, "agents", &misnamed, 400, "agent id \"a/b\" is not"),
        (Plain, &post, "agents/unknown/activate", &bad_tag, 404, "agent unknown not found"),
        (Plain, &post, "agents/known/activate", &bad_tag, 400, "waits for its activation"),
        (Anonymous, &post, "agents/known/activate", &no_tag, 400, "missing field `auth_tag`"),
        (Plain, &get, "agents/known/activate", &none, 405, "method not allowed"),
    ];
    #[rustfmt::skip]
    let only_2 = [
        (Plain, &post, "agents/known", &other, 403, "different TPM identity is forbidden"),
        (Plain, &post, "agents/new", &mistyped, 400, "body: invalid type: integer `5`"),
        (Plain, &post, "agents/new", &bad_port, 400, "body: invalid value"),
        (Plain, &post, "agents/new", &json!([]), 400, "body: "),
        (Plain, &post, "agents/new", &json!({}), 400, invalid),
        (Plain, &put, "agents/unknown", &bad_tag, 404, "agent unknown not found"),
        (Plain, &put, "agents/known", &bad_tag, 400, "waits for its activation"),
        (Plain, &put, "agents/known", &none, 400, "body: "),
        (Plain, &put, "agents/known/activate", &bad_tag, 400, "waits for its activation"),
    ];
    #[rustfmt::skip]
    let only_3 = [
        (Plain, &post, "agents/known", &other, 405, "method not allowed"),
        (Plain, &put, "agents/known", &bad_tag, 405, "method not allowed"),
        (Plain, &put, "agents/known/activate", &bad_tag, 405, "method not allowed"),
    ];
    for version in [
        "v2", "v2.0", "v2.1", "v2.2", "v2.3", "v2.4", "v2.5", "v2.6", "v3", "v3.0",
    ] {
        let more = if version.starts_with("v3") {
            &only_3[..]
        } else {
            &only_2[..]
        };
        for row in common.iter().chain(more) {
            assert_answer(&server, root.path(), version, row).await;
        }
    }
    for version in ["v1.0", "v2.7", "v3.1", "v4", "version"] {
        let path = "agents";
        let row = (
            Plain,
            &get,
            path,
            &none,
            404,
            "no such path, or no such API version",
        );
        assert_answer(&server, root.path(), version, &row).await;
    }
    server.stop().await;
}

async fn assert_answer(
    server: &Running,
    state_dir: &Path,
    version: &str,
    row: &(By, &Method, &str, &Value, u16, &str),
) {
    let (by, method, path, body, status, text) = row;
    let anonymous;
    let client = match by {
        By::Plain => &server.plain,
        By::Admin => &server.admin,
        By::Anonymous => {
            anonymous = operator(server.tls_port, &state_dir.join("cv_ca"), false);
            &anonymous
        }
    };
    let path = format!("/{version}/{path}");
    let body = (!body.is_null()).then(|| (*body).clone());
    let (got, answer) = call(client, (*method).clone(), &path, body).await;
    let said = match got {
        403 if answer.get("errors").is_some() => {
            assert_eq!(members(&answer), ["errors"]);
            assert_eq!(answer["errors"][0]["status"], "403");
            &answer["errors"][0]["detail"]
        }
        _ => {
            assert_eq!(members(&answer), ["code", "results", "status"]);
            assert_eq!(answer["code"], got);
            assert!(got == 200 || answer["results"] == json!({}), "{answer}");
            &answer["status"]
        }
    };
    let said = said.as_str().unwrap();
    assert!(
        got == *status && said.contains(text),
        "{by:?} {method} {path}: {got} {said}"
    );
}

#[tokio::test]
async fn bodies_that_are_no_json_or_too_large_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let server = start(root.path()).await;
    for (body, status) in [
        (&b"{"[..], 400),
        (b"", 400),
        (b"\xff", 400),
        (&[b'['; 10_000], 400),
        (&[b' '; 70_000], 413),
    ] {
        for (method, path) in [
            (Method::POST, "/v2.6/agents/a"),
            (Method::PUT, "/v2.6/agents/a"),
            (Method::POST, "/v3.0/agents"),
        ] {
            let body = Bytes::copy_from_slice(body);
            let answer = server.plain.send(method, path, Some(body)).await.unwrap();
            assert_eq!(answer.status, status, "{path}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn clients_of_2_find_their_version_beside_3() {
    let root = tempfile::tempdir().unwrap();
    let server = start(root.path()).await;
    let anonymous = operator(server.tls_port, &root.path().join("cv_ca"), false);
    for client in [&server.plain, &anonymous] {
        let (status, answer) = call(client, Method::GET, "/version", None).await;
        let expected = json!({
            "current_version": "2.6",
            "supported_versions": ["2.0", "2.1", "2.2", "2.3", "2.4", "2.5", "2.6", "3.0"],
        });
        assert_eq!((status, &answer["results"]), (200, &expected));
    }
    server.stop().await;
}
