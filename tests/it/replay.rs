//! What the driver remembers of its events is enough to decide the same again, and holds no word of what people asked.

use std::os::unix::fs::PermissionsExt as _;

use harness::script::{Misfortune, Script};
use ollmlx_proto::FailureKind;
use ollmlx_supervisor::cli::args::WhyArgs;
use ollmlx_supervisor::cli::client::Client;
use ollmlx_supervisor::cli::why;
use ollmlx_supervisor::config::{Config, Sources};
use ollmlx_supervisor::driver::record::replay;
use ollmlx_supervisor::types::{Job, KeepAlive};

use crate::door::Ground;
use crate::house::{Answer, House, endless, first_delta};

/// Nothing else says this.
const SECRET: &str = "the-word-that-nobody-may-see";

#[tokio::test]
async fn a_record_of_deaths_replays_to_the_same_decisions_and_holds_no_prompt() {
    let house = House::open(|config| config.scheduler.timeouts.silence_ms = 400).await;
    for (name, misfortune) in
        [("segv", Misfortune::Segfault), ("hang", Misfortune::Hang), ("half", Misfortune::Garbage)]
    {
        let script = Script { misfortune: Some((1, misfortune)), unlucky_until: 1, ..Script::default() };
        let plan = house.plan(name, &script);
        let mut ticket = house.ask_for(&plan, SECRET).await;
        assert_eq!(Answer::of(&mut ticket).await.text, "01234", "{misfortune:?}");
    }
    // One that kills its worker whenever it runs, of what no other worker died of just now, fails as the suspect, is known when it comes again, and others are not it.
    let deadly = Script { misfortune: Some((1, Misfortune::Abort)), unlucky_until: 2, ..Script::default() };
    let plan = house.plan("deadly", &deadly);
    for _ in 0..2 {
        let mut ticket = house.ask_for(&plan, SECRET).await;
        assert_eq!(Answer::of(&mut ticket).await.kind(), FailureKind::WorkerDied);
    }
    let mut ticket = house.ask_for(&plan, "something else").await;
    assert_eq!(Answer::of(&mut ticket).await.text, "01234");
    // One that leaves, and one that is told to go.
    let plan = house.plan("endless", &endless());
    let mut ticket = house.ask(&plan).await;
    first_delta(&mut ticket).await;
    drop(ticket);
    house.handle.unload(plan.model.id.clone()).await;
    house.until(|view| view.of(&plan.model.id).is_none()).await;
    let mut ticket = house.handle.submit(Job::Load, plan, Some(KeepAlive::Forever)).await;
    assert!(Answer::of(&mut ticket).await.loaded);

    let text = house.handle.record().await.unwrap().text();
    house.close().await;
    assert!(!text.contains(SECRET) && !text.contains("something else"), "{text}");
    let replayed = replay(&text).unwrap();
    assert_eq!(replayed.forgotten, 0);
    for step in &replayed.steps {
        assert_eq!(step.recorded, step.decided, "{step:?}");
    }
    let decided = |word: &str| {
        let decisions = replayed.steps.iter().flat_map(|step| &step.decided);
        decisions.filter(|decision| decision.starts_with(word)).count()
    };
    assert_eq!((decided("fail"), decided("requeue")), (2, 4), "{text}");
    assert!(decided("spawn") >= 8 && decided("grant") >= 9 && decided("impossible") == 0, "{text}");
}

#[tokio::test]
async fn a_replay_of_another_history_is_noticed() {
    let house = House::open(|_| {}).await;
    let plan = house.plan("good", &Script::default());
    house.run(&plan).await;
    let text = house.handle.record().await.unwrap().text();
    house.close().await;
    let without_the_first: Vec<&str> =
        text.lines().enumerate().filter_map(|(index, line)| (index != 1).then_some(line)).collect();
    let replayed = replay(&without_the_first.join("\n")).unwrap();
    assert!(replayed.steps.iter().any(|step| step.recorded != step.decided));
}

#[tokio::test]
async fn the_command_writes_a_record_for_its_owner_alone_and_over_no_file_unless_it_is_told_to() {
    let ground = Ground::new();
    let door = ground.open(None).await;
    let flags = [("host".to_owned(), door.address.to_string())].into();
    let config = Config::from_sources(&Sources { flags, ..Sources::default() }).unwrap();
    let client = Client::new(&config).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record");
    let write = async |force| {
        let args = WhyArgs { names: Vec::new(), json: false, record: Some(path.clone()), force };
        why::run(&client, args).await
    };
    let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    write(false).await.unwrap();
    assert_eq!((mode(), replay(&std::fs::read_to_string(&path).unwrap()).unwrap().forgotten), (0o600, 0));
    std::fs::write(&path, "mine").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = write(false).await.unwrap_err().to_string();
    assert!(refused.contains("--force"), "{refused}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    write(true).await.unwrap();
    assert_eq!(mode(), 0o600);
    replay(&std::fs::read_to_string(&path).unwrap()).unwrap();
    door.close().await;
}
