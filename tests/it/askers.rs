//! Who may ask, with real sockets: hosts, keys and their rights, paths; and what is divided among those who ask.

use std::path::PathBuf;

use harness::toy::Weights;
use ollmlx_proto::RequestId;
use ollmlx_supervisor::config::Keys;
use ollmlx_supervisor::http::Crowd;
use ollmlx_supervisor::scheduler::{Effect, Event, Outbox, Scheduler, SchedulerConfig};
use ollmlx_supervisor::types::{Caller, Job, KeyName, Mono};
use serde_json::{Value, json};

use crate::door::{Door, Ground, Reply};
use crate::house::PATIENCE;

const KEYS: &str = "anna use a\nalso use c\nbert manage b";

fn weights() -> Weights {
    Weights {
        template: "{% for m in messages %}{{ m.content }}{% endfor %}~".to_owned(),
        answer: Some("Yes.".to_owned()),
    }
}

/// A door that others than this machine could reach.
async fn public(ground: &Ground, keys: &str) -> Door {
    let change = |config: &mut ollmlx_supervisor::http::HttpConfig| {
        config.address.set_ip([0, 0, 0, 0].into());
        config.keys = if keys.is_empty() { Keys::default() } else { Keys::parse(keys).unwrap() };
    };
    ground.open_with(None, Crowd::default(), change).await
}

/// Asks under the name of the machine; with a key, unless it is empty.
async fn ask(door: &Door, key: &str, line: &str, body: &Value) -> Reply {
    let key = if key.is_empty() { String::new() } else { format!("Authorization: Bearer {key}\r\n") };
    let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{key}");
    let body = if body.is_null() { String::new() } else { body.to_string() };
    tokio::time::timeout(PATIENCE, door.say(&head, &body)).await.unwrap()
}

#[tokio::test]
async fn row_57_a_request_names_its_host_in_one_way_on_every_address() {
    let ground = Ground::new();
    let (own, open) = (ground.open(None).await, public(&ground, "").await);
    for (line, hosts, on_loopback, elsewhere) in [
        ("GET /api/version HTTP/1.1", &["localhost"][..], 200, 200),
        ("GET /api/version HTTP/1.1", &["LOCALHOST.:11434"], 200, 200),
        ("GET /api/version HTTP/1.1", &["ollama:11434"], 403, 200),
        ("GET /api/version HTTP/1.1", &[""], 200, 200),
        ("GET /api/version HTTP/1.0", &[], 200, 200),
        ("GET http://localhost/api/version HTTP/1.1", &["localhost"], 200, 200),
        ("GET http://localhost/api/version HTTP/1.0", &[], 200, 200),
        ("GET http://evil.example/api/version HTTP/1.1", &["evil.example"], 403, 200),
        ("GET http://evil.example/api/version HTTP/1.0", &[], 403, 200),
        ("GET http://evil.example/api/version HTTP/1.1", &["localhost"], 400, 400),
        ("GET http://localhost/api/version HTTP/1.1", &["evil.example"], 400, 400),
        ("GET /api/version HTTP/1.1", &[], 400, 400),
        ("GET /api/version HTTP/1.1", &["localhost", "localhost"], 400, 400),
        ("GET /api/version HTTP/1.1", &["localhost", "evil.example"], 400, 400),
        ("GET /api/version HTTP/1.0", &["localhost", "evil.example"], 400, 400),
        ("GET /api/version HTTP/1.1", &["127.1"], 400, 400),
        ("GET /api/version HTTP/1.1", &["0x7f000001"], 400, 400),
        ("GET /api/version HTTP/1.1", &["localhost@evil.example"], 400, 400),
        ("GET /api/version HTTP/1.1", &["[::1"], 400, 400),
        ("GET /api/version HTTP/1.1", &["a b"], 400, 400),
    ] {
        let hosts: String = hosts.iter().map(|host| format!("Host: {host}\r\n")).collect();
        let head = format!("{line}\r\n{hosts}Connection: close\r\n");
        let told = (own.say(&head, "").await.status, open.say(&head, "").await.status);
        assert_eq!(told, (on_loopback, elsewhere), "{line} {hosts:?}");
    }
    own.close().await;
    open.close().await;
}

#[tokio::test]
async fn a_key_that_may_use_models_manages_nothing() {
    let ground = Ground::new();
    let path = ground.model("m", &weights());
    let door = public(&ground, KEYS).await;
    let made = ask(&door, "b", "POST /api/create", &json!({"model": "toy", "from": path, "stream": false})).await;
    assert_eq!(made.status, 200, "{}", made.body);
    let run = json!({"model": "toy", "prompt": "x", "stream": false});
    for (line, body, without, using, managing) in [
        ("GET /healthz", Value::Null, 200, 200, 200),
        ("GET /api/tags", Value::Null, 401, 200, 200),
        ("GET /metrics", Value::Null, 401, 200, 200),
        ("POST /api/show", json!({"model": "toy"}), 401, 200, 200),
        ("POST /api/generate", run.clone(), 401, 200, 200),
        ("POST /api/ollmlx/fit", json!({"model": "toy"}), 401, 200, 200),
        ("POST /api/ollmlx/why", json!({"model": "toy"}), 401, 403, 200),
        ("POST /api/ollmlx/logs", json!({"model": "toy"}), 401, 403, 200),
        ("POST /api/ollmlx/restart", json!({"model": "toy"}), 401, 403, 200),
        ("GET /api/ollmlx/record", Value::Null, 401, 403, 200),
        ("GET /api/ollmlx/server", Value::Null, 401, 403, 200),
        ("POST /api/copy", json!({"source": "toy", "destination": "other"}), 401, 403, 200),
        ("POST /api/create", json!({"model": "made", "from": "toy", "stream": false}), 401, 403, 200),
        ("DELETE /api/delete", json!({"model": "other"}), 401, 403, 200),
        ("GET /made/up", Value::Null, 401, 404, 404),
        ("PUT /api/tags", Value::Null, 401, 405, 405),
    ] {
        let mut told = Vec::new();
        for key in ["", "wrong", "a", "b"] {
            told.push(ask(&door, key, line, &body).await.status);
        }
        assert_eq!(told, [without, without, using, managing], "{line}");
    }
    door.close().await;
}

#[tokio::test]
async fn s05_paths_are_for_those_who_may_name_them_and_nobody_learns_what_is_there() {
    let ground = Ground::new();
    let path = ground.model("m", &weights());
    let keyed = public(&ground, KEYS).await;
    let open = public(&ground, "").await;
    let foreign = "Host: evil.example\r\nConnection: close\r\n";
    for (line, body) in [
        ("POST /api/generate", json!({"prompt": "x", "stream": false})),
        ("POST /v1/completions", json!({"prompt": "x"})),
        ("POST /v1/messages", json!({"max_tokens": 9, "messages": [{"role": "user", "content": "x"}]})),
        ("POST /api/show", json!({})),
        ("POST /api/ollmlx/fit", json!({})),
        ("POST /api/create", json!({"stream": false})),
    ] {
        let named = |path: &str| {
            let mut body = body.clone();
            let (key, value) = if line == "POST /api/create" { ("from", path) } else { ("model", path) };
            body["model"] = "made".into();
            body[key] = value.into();
            body
        };
        let mut told = Vec::new();
        for path in [path.as_str(), "/nonexistent", "/etc/passwd", "/nonexistent/../etc/passwd"] {
            told.push(ask(&keyed, "a", line, &named(path)).await);
            // A page that was led here by a name server comes from this machine as well.
            told.push(open.say(&format!("{line} HTTP/1.1\r\n{foreign}"), &named(path).to_string()).await);
        }
        for pair in told.chunks(2) {
            assert_eq!((pair[0].status, pair[1].status), (403, 403), "{line}: {pair:?}");
            if line != "POST /api/create" {
                assert!(pair[0].body.contains("a path names a file of the server"), "{line}: {}", pair[0].body);
            }
            let text = |reply: &Reply| reply.body.split("req_").next().unwrap_or_default().to_owned();
            assert_eq!((text(&pair[0]), text(&pair[1])), (text(&told[0]), text(&told[1])), "one text for all paths");
        }
        for (door, key) in [(&keyed, "b"), (&open, "")] {
            let reply = ask(door, key, line, &named(&path)).await;
            assert_eq!(reply.status, 200, "{line}: {}", reply.body);
        }
    }
    keyed.close().await;
    open.close().await;
}

#[tokio::test]
async fn what_one_key_has_loaded_another_neither_unloads_nor_learns_the_path_of() {
    let ground = Ground::new();
    let path = ground.model("secret", &weights());
    let door = public(&ground, KEYS).await;
    ask(&door, "b", "POST /api/create", &json!({"model": "toy", "from": path, "stream": false})).await;
    let load = |model: &str, keep_alive: Value| json!({"model": model, "keep_alive": keep_alive, "stream": false});
    assert_eq!(ask(&door, "b", "POST /api/generate", &load(&path, json!("1h"))).await.status, 200);
    assert_eq!(ask(&door, "a", "POST /api/generate", &load("toy", json!("1h"))).await.status, 200);
    let rows = async |key: &str| {
        let listed = ask(&door, key, "GET /api/ps", &Value::Null).await;
        let listed: Value = serde_json::from_str(&listed.body).unwrap();
        let row = |row: &Value| (row["name"].as_str().unwrap().to_owned(), row["key"].as_str().map(str::to_owned));
        let mut rows: Vec<_> = listed["models"].as_array().unwrap().iter().map(row).collect();
        rows.sort();
        rows
    };
    let of = |name: &str, key: &str| (name.to_owned(), Some(key.to_owned()));
    assert_eq!(rows("b").await, [of(&path, "bert"), of("toy:latest", "anna")]);
    assert_eq!(rows("a").await, [of("secret.gguf", "bert"), of("toy:latest", "anna")]);
    // Another key that may only use models.
    let refused = ask(&door, "c", "POST /api/generate", &load("toy", json!(0))).await;
    assert_eq!(refused.status, 403, "{}", refused.body);
    let run = json!({"model": "toy", "prompt": "x", "keep_alive": 0, "stream": false});
    assert_eq!(ask(&door, "c", "POST /api/generate", &run).await.status, 200);
    door.handle.ping().await;
    assert_eq!(rows("a").await.last(), Some(&of("toy:latest", "anna")), "it stays as long as anna wants");
    let shown = ask(&door, "a", "POST /api/show", &json!({"model": "toy"})).await.body;
    assert!(shown.contains("FROM toy:latest") && !shown.contains("blobs"), "{shown}");
    assert!(ask(&door, "b", "POST /api/show", &json!({"model": "toy"})).await.body.contains("blobs"));
    assert_eq!(ask(&door, "a", "POST /api/generate", &load("toy", json!(0))).await.status, 200);
    door.close().await;
}

fn client(key: &str, address: u64) -> Caller {
    Caller { key: (!key.is_empty()).then(|| KeyName::new(key)), address }
}

/// A line of four: who gets in, of those that come one after the other. Nobody is ever served.
fn admitted(arrivals: &[(&str, &str, u64)]) -> Vec<bool> {
    let mut scheduler = Scheduler::new(SchedulerConfig { queue_max: 4, ..SchedulerConfig::default() }, 1);
    let come = |(id, (model, key, address)): (u64, &(&str, &str, u64))| {
        let (request, mut out) = (RequestId(id), Outbox::default());
        let plan = Box::new(harness::plan(&harness::model(model, PathBuf::from("m")), 4096, 1));
        let (job, client) = (Job::Run(harness::request(id, "x")), client(key, *address));
        scheduler.step(Mono(id), Event::Arrived { request, job, plan, keep_alive: None, client }, &mut out);
        !out.0.iter().any(|effect| matches!(effect, Effect::Fail { .. }))
    };
    (1..).zip(arrivals).map(come).collect()
}

#[test]
fn a_full_line_has_room_for_keys_with_less_than_an_even_part() {
    let flood = [("m", "anna", 1); 6];
    assert_eq!(admitted(&flood), [true, true, true, true, false, false]);
    let others =
        [("m", "bert", 1), ("m", "bert", 1), ("m", "bert", 1), ("n", "anna", 2), ("m", "", 1), ("n", "carl", 1)];
    let told = admitted(&[&flood[..4], &others].concat());
    assert_eq!(told[4..], [true, true, false, false, true, true], "half for two; then a third, then a fourth for each");
}

#[test]
fn where_one_key_has_the_line_its_addresses_and_models_have_even_parts() {
    let flood = [("m", "", 1); 4];
    let others = [("m", "", 2), ("m", "", 2), ("m", "", 2), ("n", "", 1), ("n", "", 1), ("n", "", 1)];
    let told = admitted(&[&flood[..], &others].concat());
    assert_eq!(told[4..], [true, true, false, true, true, false]);
}
