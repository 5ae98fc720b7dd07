use hyper::Method;
use serde_json::json;

use crate::{
    common::{call, operator},
    stage::{enrolment, stage},
};

#[tokio::test]
async fn operators_need_a_certificate() {
    let root = tempfile::tempdir().unwrap();
    let (verifier, agent, listening) = stage(root.path()).await;
    let anonymous = operator(verifier.port, &root.path().join("cv_ca"), false);
    for (method, path) in [
        (Method::GET, "/v2.6/agents"),
        (Method::GET, "/v2.6/agents/a"),
        (Method::POST, "/v2.6/agents/a"),
        (Method::DELETE, "/v2.6/agents/a"),
        (Method::PUT, "/v2.6/agents/a/stop"),
        (Method::PUT, "/v2.6/agents/a/reactivate"),
        (Method::GET, "/v2.6/allowlists"),
        (Method::PUT, "/v2.6/allowlists/a"),
        (Method::GET, "/v2.6/mbpolicies/"),
        (Method::DELETE, "/v2.6/mbpolicies/a"),
    ] {
        let body = Some(enrolment(&agent, &listening));
        let (code, answer) = call(&anonymous, method.clone(), path, body).await;
        assert_eq!(
            (code, &answer["errors"][0]["status"]),
            (403, &json!("403")),
            "{method} {path}"
        );
    }
    let (code, version) = call(&anonymous, Method::GET, "/version", None).await;
    assert_eq!(
        (code, &version["results"]["current_version"]),
        (200, &json!("2.6"))
    );
    let root = anonymous.send(Method::GET, "/", None).await.unwrap();
    assert_eq!(root.status, 307);
    verifier.stop().await;
}
