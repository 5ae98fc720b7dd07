//! What registrar and verifier rely on their store for, whichever engine it is on: each case is
//! a function of an empty database's URL, and [`conformance!`] makes a test of each.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use sqlx::{Connection, Executor};
use troth_verifier::store::{
    Agent, Device, Enrolled, NewNode, NewPolicy, Offer, Pending, PolicyChoice, PolicyChoices,
    PolicyDigests, PolicyKind, Promotion, RecordUpdate, Removed, Schema, Store, StoreError,
};
use zeroize::Zeroizing;

/// Tests of all cases. `$engine` makes an empty database, which lasts as long as its value, and
/// whose `url()` opens it.
macro_rules! conformance {
    ($engine:expr) => {
        $crate::conformance::conformance!(@ $engine;
            activation_survives_a_restart_and_counts
            promotion_never_replaces_another_tpm
            challenge_is_taken_once_expires_and_is_bounded
            challenges_of_an_id_are_apart_by_their_source
            a_device_identity_and_a_chain_stay_with_their_registration
            a_tpm_has_one_id_where_that_is_asked_for
            registrations_of_the_first_schema_stay
            enrolment_is_all_or_nothing
            own_policy_goes_with_the_node_and_a_shared_one_stays
            late_update_of_a_removed_node_does_not_touch_its_successor
            ids_are_sorted_by_bytes_and_differ_by_case
            what_is_optional_may_be_absent
            large_texts_and_numbers_come_back_as_they_were
            a_policy_of_many_megabytes_is_kept_once
            a_batch_is_written_whole_and_by_its_owner
            the_last_boot_of_a_node_is_kept_and_goes_with_it
            concurrent_registrations_stay_within_their_bound
            a_challenge_is_taken_by_one_of_many
            nodes_come_and_go_with_a_shared_policy_text
            the_other_servers_database_is_refused
            policies_have_names_of_their_own_and_texts_go_with_the_last
            kinds_of_policies_share_texts_but_not_names
        );
    };
    (@ $engine:expr; $($case:ident)*) => {
        $(
            #[tokio::test]
            async fn $case() {
                let database = $engine;
                conformance::$case(&database.url()).await;
            }
        )*
    };
}
pub(crate) use conformance;

fn sample(id: &str) -> Agent {
    Agent {
        agent_id: id.into(),
        ek_tpm: "ek".into(),
        ek_hash: "00ee".into(),
        ekcert: None,
        ekcert_chain: Vec::new(),
        aik_tpm: "ak".into(),
        ip: "::1".into(),
        port: 9002,
        mtls_cert: Some("disabled".into()),
        device: None,
        regcount: 0,
    }
}

const SOURCE: &str = "192.0.2.1";

fn pending(agent: Agent, created_at: u64) -> Pending {
    Pending {
        agent,
        challenge: Zeroizing::new(vec![1, 2, 3]),
        created_at,
        source: SOURCE.into(),
    }
}

pub(crate) async fn activation_survives_a_restart_and_counts(url: &str) {
    let store = open(url, Schema::Registrar).await;
    for _ in 0..2 {
        assert_eq!(
            store.promote(&sample("a"), 5, false).await.unwrap(),
            Promotion::Done
        );
    }
    store.close().await;
    let store = open(url, Schema::Registrar).await;
    let expected = Agent {
        regcount: 2,
        ..sample("a")
    };
    assert_eq!(store.agent("a").await.unwrap(), Some(expected));
    assert_eq!(store.agent_ids().await.unwrap(), ["a"]);
    let put = |pending: Pending, one_id_per_tpm| {
        let store = store.clone();
        async move { store.put_pending(&pending, one_id_per_tpm).await.unwrap() }
    };
    let b = || pending(sample("b"), 100);
    assert_eq!(put(b(), true).await, Offer::OtherId("a".into()));
    assert!(store.pending_of("b").await.unwrap().is_empty());
    let other = Some("a".into());
    assert_eq!(put(b(), false).await, Offer::Kept { other });
    let stranger = Agent {
        aik_tpm: "x".into(),
        ..sample("a")
    };
    assert_eq!(
        put(pending(stranger, 100), false).await,
        Offer::OtherIdentity
    );
    assert!(store.pending_of("a").await.unwrap().is_empty());
    assert!(store.delete_agent("a").await.unwrap());
    assert!(!store.delete_agent("a").await.unwrap());
}

pub(crate) async fn promotion_never_replaces_another_tpm(url: &str) {
    let store = open(url, Schema::Registrar).await;
    store.promote(&sample("a"), 5, false).await.unwrap();
    let with_certificate = Agent {
        ekcert: Some("c".into()),
        ..sample("a")
    };
    assert_eq!(
        store.promote(&with_certificate, 6, false).await.unwrap(),
        Promotion::Done
    );
    // Left out: the one that is known stays.
    assert_eq!(
        store.promote(&sample("a"), 7, false).await.unwrap(),
        Promotion::Done
    );
    for other in [
        Agent {
            ek_tpm: "x".into(),
            ..sample("a")
        },
        Agent {
            aik_tpm: "x".into(),
            ..sample("a")
        },
        Agent {
            ekcert: Some("x".into()),
            ..sample("a")
        },
    ] {
        assert_eq!(
            store.promote(&other, 8, false).await.unwrap(),
            Promotion::OtherIdentity
        );
        for one_id_per_tpm in [false, true] {
            let pending = pending(other.clone(), 100);
            let offer = store.put_pending(&pending, one_id_per_tpm).await.unwrap();
            assert_eq!(offer, Offer::OtherIdentity);
        }
    }
    assert!(store.pending_of("a").await.unwrap().is_empty());
    for same in [sample("a"), with_certificate] {
        let offer = store.put_pending(&pending(same, 100), true).await.unwrap();
        assert_eq!(offer, Offer::Kept { other: None });
    }
    let agent = store.agent("a").await.unwrap().unwrap();
    assert_eq!((agent.ekcert.as_deref(), agent.regcount), (Some("c"), 3));
}

pub(crate) async fn challenge_is_taken_once_expires_and_is_bounded(url: &str) {
    let store = open(url, Schema::Registrar).await;
    let evil = "x'; DROP TABLE agents; --";
    let put = |id: &'static str, at| {
        let (store, pending) = (store.clone(), pending(sample(id), at));
        async move {
            store.put_pending(&pending, false).await.unwrap();
            store.tidy_pending(at, 100, 2).await.unwrap()
        }
    };
    assert_eq!(put(evil, 101).await, 0);
    assert_eq!(put("b", 99).await, 0);
    assert_eq!(put("b", 100).await, 0, "it replaces its own");
    assert_eq!(put("c", 103).await, 1, "the oldest is pushed out");
    let take = |id| store.take_pending(id, SOURCE);
    assert!(take("b").await.unwrap().is_none());
    let taken = take(evil).await.unwrap().unwrap();
    assert_eq!((&*taken.challenge, taken.created_at), (&vec![1, 2, 3], 101));
    assert!(take(evil).await.unwrap().is_none());
    assert_eq!(put("d", 204).await, 0);
    let again = open(url, Schema::Registrar).await;
    let taken = again.take_pending("d", SOURCE).await.unwrap();
    assert!(taken.is_some(), "another process has it too");
    assert!(take("d").await.unwrap().is_none());
    assert!(take("c").await.unwrap().is_none(), "expired");
    assert!(store.agent_ids().await.unwrap().is_empty());
}

pub(crate) async fn challenges_of_an_id_are_apart_by_their_source(url: &str) {
    let store = open(url, Schema::Registrar).await;
    for (number, source) in (0..6).zip(["a", "b", "c", "d", "e", "a"]) {
        let pending = Pending {
            source: source.into(),
            ..pending(sample("x"), 100 + number)
        };
        store.put_pending(&pending, false).await.unwrap();
    }
    let newest = store.pending_of("x").await.unwrap();
    let newest: Vec<_> = newest.iter().map(|p| p.source.as_str()).collect();
    assert_eq!(newest, ["a", "e", "d", "c"]);
    assert!(store.take_pending("x", "f").await.unwrap().is_none());
    let taken = store.take_pending("x", "b").await.unwrap().unwrap();
    assert_eq!((taken.source.as_str(), taken.created_at), ("b", 101));
    assert_eq!(store.pending_of("x").await.unwrap().len(), 4);
    store.promote(&sample("x"), 5, false).await.unwrap();
    store.delete_agent("x").await.unwrap();
    assert!(store.pending_of("x").await.unwrap().is_empty());
}

pub(crate) async fn a_device_identity_and_a_chain_stay_with_their_registration(url: &str) {
    let store = open(url, Schema::Registrar).await;
    let device = |iak: &str| Device {
        iak_tpm: iak.into(),
        iak_cert: "iak cert".into(),
        idevid_tpm: "idevid".into(),
        idevid_cert: "idevid cert".into(),
    };
    let agent = |iak: &str| Agent {
        ekcert: Some("c".into()),
        ekcert_chain: vec!["ca".into(), "root".into()],
        device: Some(device(iak)),
        ..sample("a")
    };
    let stored = store.put_pending(&pending(agent("1"), 100), false).await;
    stored.unwrap();
    let taken = store.take_pending("a", SOURCE).await.unwrap().unwrap();
    assert_eq!(taken.agent, agent("1"));
    // A device identity may change and go; a certificate of the EK stays, and its chain with it.
    for (registered, expected) in [
        (agent("1"), Some(device("1"))),
        (agent("2"), Some(device("2"))),
        (sample("a"), None),
    ] {
        let promoted = store.promote(&registered, 5, false).await.unwrap();
        assert_eq!(promoted, Promotion::Done);
        let stored = store.agent("a").await.unwrap().unwrap();
        assert_eq!(stored.device, expected);
        assert_eq!(stored.ekcert_chain, ["ca", "root"]);
    }
}

pub(crate) async fn a_tpm_has_one_id_where_that_is_asked_for(url: &str) {
    let store = open(url, Schema::Registrar).await;
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                let agent = sample(&format!("agent-{n}"));
                store.promote(&agent, 5, true).await.unwrap()
            })
        })
        .collect();
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.push(task.await.unwrap());
    }
    let done = outcomes.iter().filter(|done| **done == Promotion::Done);
    assert_eq!(done.count(), 1, "{outcomes:?}");
    let other = outcomes.iter().filter(|done| **done == Promotion::OtherId);
    assert_eq!(other.count(), 7, "{outcomes:?}");
    let ids = store.agent_ids().await.unwrap();
    assert_eq!(ids.len(), 1);
    // Its own id is none of the others; and another TPM has nothing to do with it.
    let again = store.promote(&sample(&ids[0]), 6, true).await.unwrap();
    assert_eq!(again, Promotion::Done);
    let other = Agent {
        ek_hash: "00ff".into(),
        aik_tpm: "other".into(),
        ..sample("other")
    };
    assert_eq!(
        store.promote(&other, 7, true).await.unwrap(),
        Promotion::Done
    );
}

pub(crate) async fn registrations_of_the_first_schema_stay(url: &str) {
    let store = open(url, Schema::Registrar).await;
    store.promote(&sample("a"), 5, false).await.unwrap();
    store.close().await;
    // Back to what the first migration made.
    let mut database = sqlx::AnyConnection::connect(url).await.unwrap();
    let mut back = String::from("DROP INDEX agents_by_ek;");
    for table in ["agents", "pending"] {
        for column in [
            "iak_tpm",
            "iak_cert",
            "idevid_tpm",
            "idevid_cert",
            "ekcert_chain",
            "ek_hash",
        ] {
            back.push_str(&format!("ALTER TABLE {table} DROP COLUMN {column};"));
        }
    }
    back.push_str("DELETE FROM _sqlx_migrations WHERE version >= 2");
    for statement in back.split(';') {
        let statement = sqlx::AssertSqlSafe(statement.to_owned());
        database.execute(statement).await.unwrap();
    }
    database.close().await.unwrap();

    let store = open(url, Schema::Registrar).await;
    let before = Agent {
        ek_hash: String::new(),
        regcount: 1,
        ..sample("a")
    };
    assert_eq!(store.agent("a").await.unwrap(), Some(before));
    // Its next registration brings what the old record lacks.
    store.promote(&sample("a"), 6, true).await.unwrap();
    let after = store.agent("a").await.unwrap().unwrap();
    assert_eq!((after.ek_hash.as_str(), after.regcount), ("00ee", 2));
}

fn node(id: &str, generation: u64) -> NewNode {
    NewNode {
        agent_id: id.into(),
        generation,
        verifier_id: "default".into(),
        enrolment: String::from("{}").into(),
        operational_state: 1,
        record: "{}".into(),
    }
}

fn policy(name: &str) -> PolicyChoices {
    runtime(PolicyChoice::New(NewPolicy {
        name: name.into(),
        digest: "00ff".into(),
        body: "policy".into(),
    }))
}

fn runtime(runtime: PolicyChoice) -> PolicyChoices {
    PolicyChoices {
        runtime,
        boot: PolicyChoice::None,
    }
}

pub(crate) async fn enrolment_is_all_or_nothing(url: &str) {
    let store = open(url, Schema::Verifier).await;
    let done = store
        .insert_node(&node("a", 1), &policy("shared"))
        .await
        .unwrap();
    assert_eq!(done, Enrolled::Done);
    let again = store
        .insert_node(&node("a", 2), &PolicyChoices::default())
        .await
        .unwrap();
    assert_eq!(again, Enrolled::NodeExists);
    let taken = store
        .insert_node(&node("b", 3), &policy("shared"))
        .await
        .unwrap();
    assert_eq!(taken, Enrolled::PolicyExists(PolicyKind::Runtime));
    let named = runtime(PolicyChoice::Named("shared".into()));
    assert_eq!(
        store.insert_node(&node("b", 4), &named).await.unwrap(),
        Enrolled::Done
    );
    let nodes = store.nodes("default").await.unwrap();
    let seen: Vec<_> = nodes
        .iter()
        .map(|n| {
            (
                n.agent_id.as_str(),
                n.generation,
                n.policies.runtime.as_deref(),
            )
        })
        .collect();
    assert_eq!(seen, [("a", 1, Some("00ff")), ("b", 4, Some("00ff"))]);
    assert!(store.nodes("other").await.unwrap().is_empty());
}

pub(crate) async fn own_policy_goes_with_the_node_and_a_shared_one_stays(url: &str) {
    let store = open(url, Schema::Verifier).await;
    store
        .insert_node(&node("a", 1), &policy("a"))
        .await
        .unwrap();
    store
        .insert_node(&node("b", 2), &policy("shared"))
        .await
        .unwrap();
    assert!(store.delete_node("a").await.unwrap());
    assert!(!store.delete_node("a").await.unwrap());
    assert_eq!(
        store.policy_digest(PolicyKind::Runtime, "a").await.unwrap(),
        None
    );
    assert_eq!(
        store
            .policy_digest(PolicyKind::Runtime, "shared")
            .await
            .unwrap()
            .as_deref(),
        Some("00ff")
    );
    assert_eq!(
        store.policy_text("00ff").await.unwrap().as_deref(),
        Some("policy")
    );
    assert!(store.delete_node("b").await.unwrap());
    assert_eq!(
        store
            .policy_digest(PolicyKind::Runtime, "shared")
            .await
            .unwrap()
            .as_deref(),
        Some("00ff")
    );
}

pub(crate) async fn late_update_of_a_removed_node_does_not_touch_its_successor(url: &str) {
    let store = open(url, Schema::Verifier).await;
    store
        .insert_node(&node("a", 1), &PolicyChoices::default())
        .await
        .unwrap();
    store.delete_node("a").await.unwrap();
    store
        .insert_node(&node("a", 2), &PolicyChoices::default())
        .await
        .unwrap();
    let update = |generation, operational_state| RecordUpdate {
        agent_id: "a".into(),
        generation,
        operational_state,
        record: format!("{{\"g\":{generation}}}"),
    };
    store.update_records(&[update(1, 9)]).await.unwrap();
    assert_eq!(
        store.nodes("default").await.unwrap()[0].operational_state,
        1
    );
    store.update_records(&[update(2, 3)]).await.unwrap();
    let row = &store.nodes("default").await.unwrap()[0];
    assert_eq!(
        (row.operational_state, row.record.as_str()),
        (3, "{\"g\":2}")
    );
}

pub(crate) async fn the_last_boot_of_a_node_is_kept_and_goes_with_it(url: &str) {
    let store = open(url, Schema::Verifier).await;
    let none = PolicyChoices::default();
    store.insert_node(&node("a", 1), &none).await.unwrap();
    assert_eq!(store.boot("a", 1).await.unwrap(), None);
    for boot in ["first", "second", "second"] {
        store.keep_boot("a", 1, boot.to_owned()).await.unwrap();
        assert_eq!(store.boot("a", 1).await.unwrap().as_deref(), Some(boot));
    }
    // Of another enrolment, which may be another host.
    store.keep_boot("a", 2, "other".to_owned()).await.unwrap();
    store.keep_boot("b", 1, "other".to_owned()).await.unwrap();
    assert_eq!(store.boot("a", 2).await.unwrap(), None);
    assert_eq!(store.boot("b", 1).await.unwrap(), None);
    let store = open(url, Schema::Verifier).await;
    assert_eq!(store.boot("a", 1).await.unwrap().as_deref(), Some("second"));
    assert!(store.delete_node("a").await.unwrap());
    assert_eq!(store.boot("a", 1).await.unwrap(), None);
}

pub(crate) async fn ids_are_sorted_by_bytes_and_differ_by_case(url: &str) {
    let store = open(url, Schema::Registrar).await;
    let mut ids = ["b", "B", "a-1", "a.1", "a", "a_1", "A"];
    for id in ids {
        assert_eq!(
            store.promote(&sample(id), 5, false).await.unwrap(),
            Promotion::Done
        );
    }
    ids.sort_unstable();
    assert_eq!(store.agent_ids().await.unwrap(), ids);
}

pub(crate) async fn what_is_optional_may_be_absent(url: &str) {
    let store = open(url, Schema::Registrar).await;
    let bare = Agent {
        ekcert: None,
        mtls_cert: None,
        regcount: 1,
        ..sample("a")
    };
    store.promote(&bare, 5, false).await.unwrap();
    assert_eq!(store.agent("a").await.unwrap(), Some(bare));
    assert_eq!(store.agent("b").await.unwrap(), None);
}

pub(crate) async fn large_texts_and_numbers_come_back_as_they_were(url: &str) {
    let store = open(url, Schema::Registrar).await;
    // As long as ids may be, with keys of RSA 4096 and a chain of certificates.
    let id = text(255);
    let agent = Agent {
        ek_tpm: text(1_500),
        aik_tpm: text(1_500),
        ekcert: Some(text(100_000)),
        mtls_cert: Some(text(100_000)),
        port: u16::MAX,
        regcount: 1,
        ..sample(&id)
    };
    store.promote(&agent, u64::MAX, false).await.unwrap();
    assert_eq!(store.agent(&id).await.unwrap(), Some(agent));
}

pub(crate) async fn a_policy_of_many_megabytes_is_kept_once(url: &str) {
    let store = open(url, Schema::Verifier).await;
    let body = text(20 << 20);
    for name in ["a", "\u{1f512} \u{e9}'\"--"] {
        let policy = runtime(PolicyChoice::New(NewPolicy {
            name: name.into(),
            digest: "00ff".into(),
            body: body.clone(),
        }));
        let done = store.insert_node(&node(name, 1), &policy).await.unwrap();
        assert_eq!(done, Enrolled::Done);
        let digest = store
            .policy_digest(PolicyKind::Runtime, name)
            .await
            .unwrap();
        assert_eq!(digest.as_deref(), Some("00ff"));
    }
    assert!(store.policy_text("00ff").await.unwrap() == Some(body));
}

pub(crate) async fn a_batch_is_written_whole_and_by_its_owner(url: &str) {
    let store = open(url, Schema::Verifier).await;
    let ids: Vec<_> = (0..1024).map(|n| format!("node-{n:04}")).collect();
    for id in &ids {
        let of = node(id, u64::MAX >> 1);
        store
            .insert_node(&of, &PolicyChoices::default())
            .await
            .unwrap();
    }
    let updates: Vec<_> = ids
        .iter()
        .map(|id| RecordUpdate {
            agent_id: id.clone(),
            generation: u64::MAX >> 1,
            operational_state: 3,
            record: format!("{{\"of\":\"{id}\"}}"),
        })
        .collect();
    store.update_records(&updates).await.unwrap();
    store.close().await;
    let nodes = open(url, Schema::Verifier)
        .await
        .nodes("default")
        .await
        .unwrap();
    assert_eq!(nodes.len(), ids.len());
    for (row, update) in nodes.iter().zip(&updates) {
        assert_eq!(
            (&row.agent_id, &row.record),
            (&update.agent_id, &update.record)
        );
    }
}

pub(crate) async fn concurrent_registrations_stay_within_their_bound(url: &str) {
    let store = open(url, Schema::Registrar).await;
    let tasks: Vec<_> = (0..60)
        .map(|n| {
            let store = store.clone();
            // Some of them for one id.
            let id = format!("agent-{}", n % 30);
            tokio::spawn(async move {
                let pending = pending(sample(&id), 100);
                store.put_pending(&pending, false).await.unwrap();
                store.tidy_pending(100, 50, 10).await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let mut taken = 0;
    for n in 0..30 {
        let pending = store
            .take_pending(&format!("agent-{n}"), SOURCE)
            .await
            .unwrap();
        taken += u32::from(pending.is_some());
    }
    assert_eq!(taken, 10);
}

pub(crate) async fn a_challenge_is_taken_by_one_of_many(url: &str) {
    let store = open(url, Schema::Registrar).await;
    let stored = store.put_pending(&pending(sample("a"), 100), false).await;
    stored.unwrap();
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.take_pending("a", SOURCE).await.unwrap().is_some() })
        })
        .collect();
    let mut winners = 0;
    for task in tasks {
        winners += u32::from(task.await.unwrap());
    }
    assert_eq!(winners, 1);
}

pub(crate) async fn nodes_come_and_go_with_a_shared_policy_text(url: &str) {
    let store = open(url, Schema::Verifier).await;
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                let id = format!("node-{n}");
                for generation in 0..10 {
                    // One text for all: removing one's last name for it meets others' first.
                    let done = store
                        .insert_node(&node(&id, generation), &policy(&id))
                        .await;
                    assert_eq!(done.unwrap(), Enrolled::Done);
                    assert!(store.delete_node(&id).await.unwrap());
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert!(store.nodes("default").await.unwrap().is_empty());
    assert_eq!(store.policy_text("00ff").await.unwrap(), None);
}

pub(crate) async fn the_other_servers_database_is_refused(url: &str) {
    open(url, Schema::Verifier).await.close().await;
    let error = Store::open(url, Schema::Registrar).await.unwrap_err();
    assert!(matches!(error, StoreError::Occupied { .. }), "{error}");
    assert!(error.to_string().contains("a database each"), "{error}");
}

pub(crate) async fn policies_have_names_of_their_own_and_texts_go_with_the_last(url: &str) {
    let store = open(url, Schema::Verifier).await;
    let named = |name: &str, digest: &str| NewPolicy {
        name: name.into(),
        digest: digest.into(),
        body: format!("policy {digest}"),
    };
    for name in ["b", "B", "a.b", "ab"] {
        assert!(
            store
                .insert_policy(PolicyKind::Runtime, &named(name, "00"))
                .await
                .unwrap()
        );
    }
    assert!(
        !store
            .insert_policy(PolicyKind::Runtime, &named("b", "01"))
            .await
            .unwrap()
    );
    assert_eq!(store.policy_text("01").await.unwrap(), None);
    let names = names(&store, PolicyKind::Runtime).await;
    assert_eq!(names, ["B", "a.b", "ab", "b"]);

    assert!(
        store
            .replace_policy(PolicyKind::Runtime, &named("b", "02"))
            .await
            .unwrap()
    );
    assert!(
        !store
            .replace_policy(PolicyKind::Runtime, &named("c", "03"))
            .await
            .unwrap()
    );
    assert_eq!(store.policy_text("03").await.unwrap(), None);
    for id in ["n-2", "n-1"] {
        let choice = runtime(PolicyChoice::Named("b".into()));
        let done = store.insert_node(&node(id, 1), &choice).await.unwrap();
        assert_eq!(done, Enrolled::Done);
    }
    assert_eq!(
        store.policy_users(PolicyKind::Runtime, "b").await.unwrap(),
        ["n-1", "n-2"]
    );
    let in_use = Removed::InUse("n-1".into());
    assert_eq!(
        store.delete_policy(PolicyKind::Runtime, "b").await.unwrap(),
        in_use
    );
    assert_eq!(
        store.delete_policy(PolicyKind::Runtime, "c").await.unwrap(),
        Removed::Unknown
    );
    for name in ["B", "a.b", "ab"] {
        assert!(store.policy_text("00").await.unwrap().is_some());
        assert_eq!(
            store
                .delete_policy(PolicyKind::Runtime, name)
                .await
                .unwrap(),
            Removed::Done
        );
    }
    assert_eq!(store.policy_text("00").await.unwrap(), None);
}

pub(crate) async fn kinds_of_policies_share_texts_but_not_names(url: &str) {
    let store = open(url, Schema::Verifier).await;
    let (runtime, boot) = (PolicyKind::Runtime, PolicyKind::Boot);
    let new = NewPolicy {
        name: "a".into(),
        digest: "00".into(),
        body: "{}".into(),
    };
    assert!(store.insert_policy(runtime, &new).await.unwrap());
    let own = PolicyChoices {
        runtime: PolicyChoice::Named("a".into()),
        boot: PolicyChoice::New(new.clone()),
    };
    let done = store.insert_node(&node("a", 1), &own).await.unwrap();
    assert_eq!(done, Enrolled::Done);
    let taken = PolicyChoices {
        boot: PolicyChoice::New(new.clone()),
        ..policy("b")
    };
    let refused = store.insert_node(&node("b", 2), &taken).await.unwrap();
    assert_eq!(refused, Enrolled::PolicyExists(boot));
    assert_eq!(names(&store, runtime).await, ["a"]);
    assert_eq!(names(&store, boot).await, ["a"]);
    let replaced = NewPolicy {
        digest: "01".into(),
        body: "{ }".into(),
        ..new
    };
    let generation = store.policy_generation().await.unwrap();
    assert!(store.replace_policy(boot, &replaced).await.unwrap());
    // Other verifiers see that something was replaced, and what their nodes use now.
    let now = store.policy_generation().await.unwrap();
    assert!(now > generation);
    let digests = PolicyDigests {
        runtime: Some("00".into()),
        boot: Some("01".into()),
    };
    let used = store.node_policies("default").await.unwrap();
    assert_eq!(used, [("a".to_owned(), digests)]);
    assert!(store.node_policies("other").await.unwrap().is_empty());
    assert_eq!(
        store.enrolment("a").await.unwrap(),
        Some(String::from("{}").into())
    );
    assert_eq!(store.enrolment("b").await.unwrap(), None);
    assert_eq!(store.policy_users(boot, "a").await.unwrap(), ["a"]);
    // Both are named after the node.
    assert!(store.delete_node("a").await.unwrap());
    for kind in [runtime, boot] {
        assert_eq!(
            store.delete_policy(kind, "a").await.unwrap(),
            Removed::Unknown
        );
    }
    for digest in ["00", "01"] {
        assert_eq!(store.policy_text(digest).await.unwrap(), None);
    }
}

/// Text that does not compress.
fn text(length: usize) -> String {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            char::from(b'!' + u8::try_from(state % 94).unwrap())
        })
        .collect()
}

async fn open(url: &str, schema: Schema) -> Store {
    Store::open(url, schema).await.unwrap()
}

async fn names(store: &Store, kind: PolicyKind) -> Vec<String> {
    let summaries = store.policy_summaries(kind).await.unwrap();
    summaries.into_iter().map(|policy| policy.name).collect()
}
