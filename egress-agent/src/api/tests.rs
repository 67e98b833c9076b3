//! Client and service over a real socket, with a made-up agent behind it.

use std::{
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::JoinHandle,
    time::timeout,
};

use super::{
    model::{ConfirmationStatus, FollowLine, LearnedAddress},
    peer::Limits,
    service::serve_within,
    testing::{FakeAgent, allowed_flow, counters, denied_flow, learned, status},
    *,
};
use crate::shutdown::{self, Trigger};

const SOON: Duration = Duration::from_secs(5);

struct World {
    agent: Arc<FakeAgent>,
    client: Client,
    socket: PathBuf,
    trigger: Trigger,
    serving: JoinHandle<Result<(), ServiceError>>,
    _folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self::within(Limits::DEFAULT)
    }

    fn within(limits: Limits) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("agent.sock");
        let agent = Arc::new(FakeAgent::default());
        let (trigger, shutdown) = shutdown::channel();
        let listener = ApiListener::bind(&socket).expect("listens");
        let serving = tokio::spawn(serve_within(limits, listener, agent.clone(), shutdown));
        Self {
            agent,
            client: Client::new(&socket),
            socket,
            trigger,
            serving,
            _folder: folder,
        }
    }

    /// Head and body of an answer, as curl would get them.
    async fn get(&self, path: &str) -> (String, String) {
        let mut stream = UnixStream::connect(&self.socket).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("writes");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("reads");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let is_chunked = head.contains("transfer-encoding: chunked");
        let body = if is_chunked {
            joined(body)
        } else {
            body.to_owned()
        };
        (head.to_owned(), body)
    }

    async fn learned(&self, query: Option<&str>) -> Result<Vec<LearnedAddress>, ClientError> {
        let mut list = self.client.learned(query, &PodFilter::default()).await?;
        let mut rows = Vec::new();
        while let Some(row) = list.next().await? {
            rows.push(row.read()?);
        }
        Ok(rows)
    }

    async fn json(&self, path: &str) -> Value {
        let (head, body) = self.get(path).await;
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        serde_json::from_str(&body).expect("JSON")
    }
}

/// A body that is sent in chunks (RFC 9112 section 7.1), which has to be complete.
fn joined(mut chunks: &str) -> String {
    let mut body = String::new();
    loop {
        let (bytes, rest) = chunks.split_once("\r\n").expect("a length");
        let bytes = usize::from_str_radix(bytes, 16).expect("a number");
        if bytes == 0 {
            return body;
        }
        let (chunk, rest) = rest.split_at(bytes);
        body.push_str(chunk);
        chunks = rest.strip_prefix("\r\n").expect("an end");
    }
}

fn has_fields(value: &Value, fields: &[&str]) {
    for field in fields {
        assert!(value.get(field).is_some(), "{field} is missing in {value}");
    }
}

#[tokio::test]
async fn what_the_agent_says_reaches_the_client_unchanged() {
    let world = World::new();
    let mut expected = status();
    expected.lost.insert("flow_followers_lost".to_owned(), 0);
    assert_eq!(world.client.status().await.expect("status"), expected);
    assert_eq!(world.client.counters().await.expect("counters"), counters());
    assert_eq!(world.learned(None).await.expect("all"), learned());
}

#[tokio::test]
async fn a_query_is_passed_on() {
    let world = World::new();
    let found = async |query| {
        let learned = world.learned(Some(query)).await.expect("learned");
        learned.into_iter().map(|row| row.name).collect::<Vec<_>>()
    };
    assert_eq!(found("a.example.com").await, ["a.example.com"]);
    assert_eq!(found("2001:db8::1").await, ["b.example.com"]);
    assert_eq!(found("*.example.com").await.len(), 2);
    assert!(found("x&query=a.example.com").await.is_empty());
}

#[tokio::test]
async fn what_is_to_be_explained_is_passed_on() {
    let world = World::new();
    let explain = |to, from| {
        let client = world.client.clone();
        async move { client.explain(to, from).await }
    };
    let explained = explain("A.example.com", None).await.expect("explained");
    assert_eq!(explained.destination, "a.example.com:443/tcp");
    assert!(explained.default_port);
    let explained = explain("[2001:db8::1]:53/udp", Some("node"))
        .await
        .expect("explained");
    assert_eq!(explained.destination, "[2001:db8::1]:53/udp");
    assert!(!explained.default_port);
    for (to, from, says) in [
        (
            "a.example.com",
            Some("web&to=b"),
            "no scope is called \"web&to=b\"",
        ),
        (
            "10.0.0.0/8",
            None,
            "\"10.0.0.0/8\" is not a destination: it is a network",
        ),
    ] {
        let error = explain(to, from).await.expect_err("refused");
        assert!(matches!(&error, ClientError::BadQuestion(_)), "{error:?}");
        assert!(error.to_string().starts_with(says), "{error}");
    }
}

#[tokio::test]
async fn recent_flows_are_filtered_and_limited() {
    let world = World::new();
    {
        let mut recent = world.agent.recent.lock().expect("not poisoned");
        recent.push(denied_flow(1).into());
        recent.push(allowed_flow(2).into());
        recent.push(denied_flow(3).into());
    }
    let ports = |filter| {
        let client = world.client.clone();
        async move {
            let flows = client.flows(filter).await.expect("flows");
            flows
                .iter()
                .filter_map(|flow| flow.port)
                .collect::<Vec<_>>()
        }
    };
    assert_eq!(ports(FlowFilter::default()).await, [1, 2, 3]);
    let mut filter = FlowFilter {
        denied: true,
        ..FlowFilter::default()
    };
    assert_eq!(ports(filter.clone()).await, [1, 3]);
    filter.limit = Some(1);
    assert_eq!(ports(filter.clone()).await, [3]);
    // They are all of the node.
    filter.pods.namespace = Some("a b".to_owned());
    assert_eq!(ports(filter).await, [0; 0]);
}

#[tokio::test]
async fn a_follower_sees_verdicts_as_they_come_and_the_end() {
    let world = World::new();
    let filter = FlowFilter {
        denied: true,
        ..FlowFilter::default()
    };
    let mut following = world.client.follow(filter).await.expect("follows");
    for port in 1..=3 {
        world
            .agent
            .flows
            .send(allowed_flow(port).into())
            .expect("heard");
        world
            .agent
            .flows
            .send(denied_flow(port).into())
            .expect("heard");
        let line = timeout(SOON, following.next()).await.expect("in time");
        let expected = FollowLine::Flow(denied_flow(port).into());
        assert_eq!(line.expect("a line"), Some(expected));
    }
    world.trigger.shut_down();
    let end = timeout(SOON, following.next()).await.expect("in time");
    assert_eq!(end.expect("no error"), None);
    timeout(SOON, world.serving)
        .await
        .expect("ends in time")
        .expect("no panic")
        .expect("no error");
    assert!(!world.socket.exists());
}

#[tokio::test]
async fn a_follower_is_told_what_it_missed_and_status_counts_it() {
    let world = World::new();
    let filter = FlowFilter::default();
    let mut following = world.client.follow(filter).await.expect("follows");
    // The channel holds four, and this thread does not let the service run in between.
    for port in 1..=10 {
        world
            .agent
            .flows
            .send(denied_flow(port).into())
            .expect("heard");
    }
    let line = timeout(SOON, following.next()).await.expect("in time");
    assert_eq!(line.expect("a line"), Some(FollowLine::Lost { lost: 6 }));
    let line = timeout(SOON, following.next()).await.expect("in time");
    let expected = FollowLine::Flow(denied_flow(7).into());
    assert_eq!(line.expect("a line"), Some(expected));
    let lost = world.client.status().await.expect("status").lost;
    assert_eq!(lost.get("flow_followers_lost"), Some(&6));
}

#[tokio::test]
async fn a_follower_that_leaves_is_forgotten() {
    let world = World::new();
    let following = world.client.follow(FlowFilter::default()).await;
    assert_eq!(world.agent.flows.receiver_count(), 1);
    drop(following.expect("follows"));
    let forgotten = async {
        while world.agent.flows.receiver_count() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, forgotten).await.expect("in time");
}

#[tokio::test]
async fn a_client_that_does_not_read_does_not_keep_the_agent_alive() {
    let world = World::new();
    let mut stream = UnixStream::connect(&world.socket).await.expect("connects");
    let request = b"GET /v1/flows/follow HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(request).await.expect("writes");
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.trigger.shut_down();
    timeout(SOON, world.serving)
        .await
        .expect("ends in time")
        .expect("no panic")
        .expect("no error");
}

#[tokio::test]
async fn an_agent_that_cannot_answer_says_why() {
    let world = World::new();
    *world.agent.status.lock().expect("not poisoned") = Err("map LEARNED is gone".to_owned());
    let error = world.client.status().await.expect_err("fails");
    let text = "the agent answered 500 Internal Server Error: map LEARNED is gone";
    assert_eq!(error.to_string(), text);
    let (head, _) = world.get("/metrics").await;
    assert!(head.starts_with("HTTP/1.1 500"), "{head}");
}

#[tokio::test]
async fn a_confirmation_is_passed_on_and_refused_when_none_is_awaited() {
    let world = World::new();
    let error = world.client.confirm().await.expect_err("none is awaited");
    assert!(matches!(error, ClientError::Conflict(_)), "{error:?}");
    assert_eq!(
        error.to_string(),
        "no confirmation is awaited: the agent was started without --confirm"
    );
    let confirmed = ConfirmationStatus {
        state: "confirmed".into(),
        ..ConfirmationStatus::default()
    };
    if let Ok(status) = &mut *world.agent.status.lock().expect("not poisoned") {
        status.confirmation = Some(confirmed.clone());
    }
    assert_eq!(world.client.confirm().await.expect("awaited"), confirmed);
    // Reading an address must not confirm anything.
    let (head, _) = world.get("/v1/confirm").await;
    assert!(head.starts_with("HTTP/1.1 405"), "{head}");
}

#[tokio::test]
async fn wrong_requests_are_refused_in_json() {
    let world = World::new();
    for (path, status) in [
        ("/v1/flows?denied=maybe", "400"),
        ("/v1/flows?limit=-1", "400"),
        ("/v1/learned?name=x", "400"),
        ("/v1/explain", "400"),
        ("/v1/explain?to=", "400"),
        ("/v2/status", "404"),
    ] {
        let (head, body) = world.get(path).await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status}")),
            "{path}: {head}"
        );
        let body: Value = serde_json::from_str(&body).expect("JSON");
        has_fields(&body, &["error"]);
    }
}

#[tokio::test]
async fn prometheus_can_read_the_metrics() {
    let world = World::new();
    let (head, body) = world.get("/metrics").await;
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(
        head.contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    assert!(body.contains("\negress_enforcing 1\n"), "{body}");
}

#[tokio::test]
async fn every_field_that_is_promised_is_there() {
    let world = World::new();
    let status = world.json("/v1/status").await;
    let fields = [
        "hooks",
        "mode",
        "policy",
        "maps",
        "lost",
        "alarms",
        "enforcing",
    ];
    has_fields(&status, &fields);
    has_fields(&status["policy"], &["generation", "error"]);
    has_fields(&status["maps"][0], &["name", "entries", "capacity"]);
    has_fields(&status["hooks"][0], &["hook", "target", "attached"]);

    let counters = world.json("/v1/counters").await;
    for total in ["allowed", "denied", "would_deny"] {
        assert!(counters[total].is_u64(), "{total}");
    }
    for list in ["by_reason", "by_rule", "by_hook"] {
        assert!(counters[list].is_array(), "{list}");
    }
    has_fields(
        &counters["by_reason"][0],
        &["reason", "verdict", "count", "words"],
    );
    let fields = [
        "rule",
        "allowed",
        "denied",
        "would_deny",
        "policy",
        "file",
        "line",
    ];
    has_fields(&counters["by_rule"][0], &fields);
    let fields = ["hook", "allowed", "denied", "would_deny"];
    has_fields(&counters["by_hook"][0], &fields);

    let learned = world.json("/v1/learned").await;
    let row = &learned.as_array().expect("a list")[0];
    has_fields(row, &["name", "address", "ports", "expires_in_s", "scope"]);
    assert!(row["ports"].is_array() && row["expires_in_s"].is_u64());
    assert!(row["name"].is_string() && row["scope"].is_string());

    let seen = world.json("/v1/observations").await;
    let fields = [
        "scope",
        "name",
        "port",
        "protocol",
        "verdict",
        "reason",
        "flows",
        "first",
        "last",
        "senders",
        "addresses",
        "other_names",
        "is_cut",
    ];
    has_fields(&seen["observations"][0], &fields);
    assert!(seen["losses"].is_array());

    let flow = denied_flow(443);
    world
        .agent
        .recent
        .lock()
        .expect("not poisoned")
        .push(flow.into());
    let flows = world.json("/v1/flows?denied=true").await;
    let fields = [
        "at",
        "scope",
        "cgroup",
        "source",
        "destination",
        "port",
        "protocol",
        "names",
        "verdict",
        "reason",
        "words",
        "rule",
        "hook",
    ];
    has_fields(&flows[0], &fields);
    assert_eq!(flows[0]["at"], "2026-11-22T02:49:55.120Z");
}

/// Small bounds, so that a test is quick.
const TIGHT: Limits = Limits {
    asking: 4,
    request: Duration::from_millis(200),
    stalled: Duration::from_millis(200),
    ..Limits::DEFAULT
};

#[tokio::test]
async fn idle_clients_lose_their_place_and_keep_nobody_out() {
    let world = World::within(TIGHT);
    let mut idle = Vec::new();
    for number in 0..20 {
        let mut stream = UnixStream::connect(&world.socket).await.expect("connects");
        // Half a request, or none.
        if number % 2 == 0 {
            stream.write_all(b"GET /v1/st").await.expect("writes");
        }
        idle.push(stream);
    }
    // A client that asks is answered before any of them is late.
    world.json("/v1/status").await;
    let mut hung_up = 0;
    for stream in &mut idle {
        let read = timeout(Duration::from_millis(10), stream.read(&mut [0; 16])).await;
        hung_up += usize::from(read.is_ok());
    }
    assert!(hung_up >= 16, "{hung_up} of 20");
    // Then the others are late, too.
    tokio::time::sleep(TIGHT.request * 2).await;
    for stream in &mut idle {
        let mut answer = Vec::new();
        let read = timeout(SOON, stream.read_to_end(&mut answer)).await;
        // A 408 or nothing; a connection with unread bytes is reset.
        assert!(read.is_ok(), "still open");
    }
}

#[tokio::test]
async fn two_hundred_idle_clients_and_all_followers_keep_nobody_out() {
    let world = World::new();
    let mut following = Vec::new();
    let refused = loop {
        match world.client.follow(FlowFilter::default()).await {
            Ok(one) => following.push(one),
            Err(error) => break error,
        }
    };
    assert_eq!(following.len(), Limits::DEFAULT.followers);
    let text = "the agent is busy: 48 clients follow verdicts already, which is as many as the \
                agent serves: try again when one has ended";
    assert_eq!(refused.to_string(), text);
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(UnixStream::connect(&world.socket).await.expect("connects"));
    }
    world.json("/v1/status").await;
    world.json("/v1/counters").await;
    let (head, _) = world.get("/metrics").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let error = world.client.confirm().await.expect_err("none is awaited");
    assert!(matches!(error, ClientError::Conflict(_)), "{error:?}");
    // A place that is given back is somebody else's.
    following.pop();
    let again = async {
        while world.client.follow(FlowFilter::default()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, again).await.expect("in time");
    // And those who follow hear of everything still.
    world
        .agent
        .flows
        .send(denied_flow(9).into())
        .expect("heard");
    for one in &mut following {
        let line = timeout(SOON, one.next()).await.expect("in time");
        assert!(matches!(line, Ok(Some(FollowLine::Flow(_)))), "{line:?}");
    }
}

fn many(count: u32) -> Vec<LearnedAddress> {
    let one = learned().remove(0);
    let numbered = |number: u32| LearnedAddress {
        name: format!("{number}.example.com"),
        address: IpAddr::V6(Ipv6Addr::from_bits(number.into())),
        ..one.clone()
    };
    (0..count).map(numbered).collect()
}

#[tokio::test]
async fn a_long_list_is_whole_and_is_made_as_fast_as_it_is_read() {
    let world = World::new();
    let rows = many(20_000);
    *world.agent.learned.lock().expect("not poisoned") = rows.clone();
    let pages = || world.agent.learned_pages.load(Ordering::Relaxed);
    let pods = PodFilter::default();
    let mut slow = world.client.learned(None, &pods).await.expect("a list");
    let mut count = usize::from(slow.next().await.expect("a row").is_some());
    tokio::time::sleep(Duration::from_millis(100)).await;
    // Only a few pieces and what the socket holds wait for the client, of five megabytes.
    let made = pages();
    assert!((1..20).contains(&made), "{made} of 40 pages");
    // Meanwhile somebody else reads all of it.
    assert_eq!(world.learned(None).await.expect("all"), rows);
    assert_eq!(pages(), made + 40);
    while slow.next().await.expect("a row").is_some() {
        count += 1;
    }
    assert_eq!(count, rows.len());
    let answer: Vec<LearnedAddress> =
        serde_json::from_value(world.json("/v1/learned").await).expect("rows");
    assert_eq!(answer, rows);
    // The agent reports nothing of pods that he has not asked for.
    let other = PodFilter {
        namespace: Some("shop".to_owned()),
        pod: None,
    };
    let mut none = world.client.learned(None, &other).await.expect("a list");
    assert!(none.next().await.expect("no error").is_none());
}

#[tokio::test]
async fn a_list_that_breaks_off_is_no_list() {
    let world = World::new();
    *world.agent.learned.lock().expect("not poisoned") = many(5_000);
    world.agent.is_learned_broken.store(true, Ordering::Relaxed);
    let error = world.learned(None).await.map(|rows| rows.len());
    let error = error.expect_err("breaks off");
    assert!(
        matches!(error, ClientError::Broken(_) | ClientError::BrokenOff),
        "{error:?}"
    );
    // A list that is broken from the beginning is an error with its reason.
    world.agent.learned.lock().expect("not poisoned").clear();
    let error = world.learned(None).await.expect_err("fails");
    assert!(
        error.to_string().ends_with("map LEARNED is gone"),
        "{error}"
    );
}

#[tokio::test]
async fn who_does_not_read_a_list_loses_his_place_and_harms_nobody() {
    let limits = Limits {
        listings: 2,
        stalled: Duration::from_millis(300),
        ..Limits::DEFAULT
    };
    let world = World::within(limits);
    *world.agent.learned.lock().expect("not poisoned") = many(20_000);
    let pods = PodFilter::default();
    let mut stuck = Vec::new();
    for _ in 0..2 {
        stuck.push(world.client.learned(None, &pods).await.expect("a list"));
    }
    let error = world.client.learned(None, &pods).await;
    let error = error.expect_err("both places are taken").to_string();
    assert!(
        error.starts_with("the agent is busy: 2 lists are being read"),
        "{error}"
    );
    world.json("/v1/status").await;
    let again = async {
        while world.learned(None).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, again).await.expect("in time");
    for mut list in stuck {
        let broken = loop {
            match list.next().await {
                Ok(Some(_)) => {}
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        assert!(broken);
    }
}

#[tokio::test]
async fn a_follower_that_reads_keeps_its_place_for_as_long_as_it_likes() {
    let world = World::within(TIGHT);
    let mut following = world
        .client
        .follow(FlowFilter::default())
        .await
        .expect("follows");
    tokio::time::sleep(TIGHT.request * 3).await;
    world
        .agent
        .flows
        .send(denied_flow(9).into())
        .expect("is followed");
    let line = timeout(SOON, following.next()).await.expect("in time");
    assert!(matches!(
        line.expect("a line"),
        Some(FollowLine::Flow(flow)) if flow.port == Some(9)
    ));
}
