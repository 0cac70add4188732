//! Who gets room: what can never fit starts nothing, what is pinned stays, and what doesn't fit is made smaller.

use std::path::PathBuf;
use std::sync::Arc;

use harness::script::Script;
use ollmlx_proto::{FailureKind, KvCells, MemoryReport, Ready, RequestId, WorkerId};
use ollmlx_supervisor::catalog::{Learned, Loaded, ModelRef};
use ollmlx_supervisor::config::Rules;
use ollmlx_supervisor::http::fit::{self, Ask};
use ollmlx_supervisor::http::{HttpConfig, learn};
use ollmlx_supervisor::scheduler::{
    Effect, Event, Job, KeepAlive, LoadPlan, Mono, Outbox, Scheduler, SchedulerConfig, Shrink,
};

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::house::{House, PATIENCE, endless, first_delta};

/// A scheduler, and who it started.
struct Desk {
    scheduler: Scheduler,
    now: Mono,
    next_request: u64,
    started: Vec<(WorkerId, Box<LoadPlan>)>,
    /// Processes that were told to go take their time.
    are_slow: bool,
    refused: Vec<(FailureKind, String)>,
}

impl Desk {
    fn new(limit: u64, change: impl FnOnce(&mut SchedulerConfig)) -> Self {
        let mut config = SchedulerConfig { memory_limit: Some(limit), ..SchedulerConfig::default() };
        change(&mut config);
        let scheduler = Scheduler::new(config, 1);
        Self { scheduler, now: Mono(1), next_request: 1, started: Vec::new(), are_slow: false, refused: Vec::new() }
    }

    /// Tells it, and lets every process that it starts be ready at once.
    fn tell(&mut self, event: Event) {
        let mut owed = vec![event];
        while let Some(event) = owed.pop() {
            self.now = self.now.plus_ms(1);
            let mut out = Outbox::default();
            self.scheduler.step(self.now, event, &mut out);
            self.scheduler.check().expect("every invariant holds");
            for effect in out.0 {
                match effect {
                    Effect::Spawn { worker, plan, .. } => {
                        let context_tokens = plan.spec.context_tokens;
                        let ready = Ready { slots: plan.spec.slots, context_tokens, memory: plan.memory, ..ready() };
                        owed.push(Event::Ready { worker: worker.clone(), ready });
                        owed.push(Event::Hello { worker: worker.clone() });
                        owed.push(Event::Spawned { worker: worker.clone(), pid: 7 });
                        self.started.push((worker, plan));
                    }
                    Effect::Push { .. } if self.are_slow => {}
                    Effect::Push { worker, .. } => {
                        let cause = ollmlx_supervisor::scheduler::Cause::Exited { code: 0 };
                        owed.push(Event::Exited { worker, cause, log_tail: String::new() });
                    }
                    Effect::Fail { failure, .. } => self.refused.push((failure.kind, failure.public)),
                    Effect::Never { what } => panic!("{what}"),
                    _ => {}
                }
            }
        }
    }

    fn load(&mut self, plan: &LoadPlan, keep_alive: Option<KeepAlive>) {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.tell(Event::Arrived { request, job: Job::Load, plan: Box::new(plan.clone()), keep_alive });
    }

    fn loaded(&self) -> Vec<String> {
        let living = self.scheduler.snapshot(self.now).workers.into_iter().filter(|view| view.pid.is_some());
        living.map(|view| view.model.name.clone()).collect()
    }

    fn last_plan(&self) -> (u16, u32, u64) {
        let (_, plan) = self.started.last().expect("something was started");
        (plan.spec.slots, plan.spec.context_tokens, plan.need())
    }
}

fn ready() -> Ready {
    Ready { slots: 1, context_tokens: 0, memory: MemoryReport::default(), device: String::new(), accelerator_bytes: 0 }
}

/// A model with 100 bytes of weights and one byte for each token of each slot, in steps of 32.
fn model(name: &str) -> Arc<ModelRef> {
    let mut model = (*harness::model(name, PathBuf::from(name))).clone();
    let mut card = (*model.card).clone();
    card.memory.weights = 100;
    card.memory.kv = vec![KvCells { elements: 1, window_tokens: 0, slack_tokens: 0, multiple: 1, shared: false }];
    card.memory.kv_bytes_of_32.insert("f16".to_owned(), 32);
    card.memory.context_max = 4096;
    model.card = Arc::new(card);
    Arc::new(model)
}

fn plan(name: &str, slots: u16, context_tokens: u32, context_least: u32) -> LoadPlan {
    let mut plan = harness::plan(&model(name), context_tokens, 0);
    plan.spec.slots = slots;
    plan.memory = plan.model.card.memory.estimate(slots, context_tokens, plan.spec.batch_tokens, "f16");
    plan.terms.context_least = context_least;
    plan
}

#[test]
fn what_can_never_fit_is_refused_and_starts_no_worker() {
    let mut desk = Desk::new(3299, |_| {});
    desk.load(&plan("large", 4, 800, 800), None);
    assert_eq!(desk.started.len(), 0);
    let [(FailureKind::OutOfMemory, text)] = desk.refused.as_slice() else { panic!("{:?}", desk.refused) };
    assert!(text.starts_with("model requires more memory (3.3 KB) than the limit allows (3.2 KB)"), "{text}");
    let mut own = plan("large", 1, 800, 800);
    own.terms.limit = Some(899);
    desk.load(&own, None);
    assert!(desk.refused[1].1.contains("than its own limit allows"), "{:?}", desk.refused[1]);
    assert_eq!(desk.started.len(), 0);
    own.terms.limit = Some(900);
    desk.load(&own, None);
    assert_eq!((desk.started.len(), desk.refused.len()), (1, 2), "at the limit it fits");
}

#[test]
fn slots_go_before_the_window_and_the_window_no_further_than_the_request() {
    let shrunk = |shrink, limit| {
        let mut desk = Desk::new(limit, |config| config.shrink = shrink);
        desk.load(&plan("m", 4, 800, 200), None);
        desk.started.last().map(|_| desk.last_plan())
    };
    assert_eq!(shrunk(Shrink::Nothing, 3300), Some((4, 800, 3300)));
    assert_eq!(shrunk(Shrink::Nothing, 3299), None);
    assert_eq!(shrunk(Shrink::Slots, 3299), Some((3, 800, 2500)));
    assert_eq!(shrunk(Shrink::Context, 1700), Some((2, 800, 1700)));
    assert_eq!(shrunk(Shrink::Slots, 899), None);
    assert_eq!(shrunk(Shrink::Context, 899), Some((1, 799, 868)));
    assert_eq!(shrunk(Shrink::Context, 292), Some((1, 223, 292)));
    assert_eq!(shrunk(Shrink::Context, 291), None, "the request needs 200 tokens");
}

#[test]
fn a_smaller_model_serves_whoever_can_do_with_it() {
    let mut desk = Desk::new(899, |config| config.shrink = Shrink::Context);
    desk.load(&plan("m", 1, 800, 200), None);
    desk.load(&plan("m", 1, 800, 300), None);
    assert_eq!(desk.started.len(), 1, "no second load");
    let view = desk.scheduler.snapshot(desk.now).workers.remove(0);
    assert!(view.account.shrunk);
    assert_eq!((view.context_tokens, view.account.planned), (799, 868));
    desk.load(&plan("m", 1, 800, 800), None);
    assert_eq!((desk.started.len(), desk.refused.len()), (1, 1), "one that needs all of it is refused");
    assert_eq!(desk.loaded(), ["m"], "and the others' process stays");
}

#[test]
fn what_was_learned_counts_and_never_below_the_estimate() {
    let mut known = plan("m", 1, 800, 800);
    known.terms.learned_permille = 1500;
    assert_eq!(known.need(), 1350);
    let mut desk = Desk::new(1349, |_| {});
    desk.load(&known, None);
    assert_eq!((desk.started.len(), desk.refused.len()), (0, 1));
    known.terms.learned_permille = 1;
    assert_eq!(known.need(), 900);
    known.terms.learned_permille = u32::MAX;
    known.memory.weights = u64::MAX;
    assert_eq!(known.need(), u64::MAX);
}

#[test]
fn row_80_pinned_models_stay_and_are_named_with_their_bytes() {
    let mut desk = Desk::new(2000, |_| {});
    desk.load(&plan("one", 1, 800, 800), Some(KeepAlive::Forever));
    desk.load(&plan("two", 1, 800, 800), Some(KeepAlive::Forever));
    desk.load(&plan("three", 1, 800, 800), None);
    assert_eq!(desk.loaded(), ["one", "two"]);
    let [(FailureKind::OutOfMemory, text)] = desk.refused.as_slice() else { panic!("{:?}", desk.refused) };
    assert!(text.contains("kept for ever: one (900 B), two (900 B)"), "{text}");
    // Once one is let go there is room.
    desk.load(&plan("one", 1, 800, 800), Some(KeepAlive::ForMs(60_000)));
    desk.load(&plan("three", 1, 800, 800), None);
    assert_eq!(desk.loaded(), ["three", "two"]);
}

#[test]
fn pins_that_fill_every_place_are_named_as_well() {
    let mut desk = Desk::new(u64::MAX, |config| config.workers_max = 1);
    desk.load(&plan("one", 1, 800, 800), Some(KeepAlive::Forever));
    desk.load(&plan("two", 1, 800, 800), None);
    assert_eq!(desk.loaded(), ["one"]);
    assert!(desk.refused[0].1.contains("no more than 1 models"), "{:?}", desk.refused);
}

#[test]
fn where_all_models_stay_for_ever_none_is_pinned() {
    let mut desk = Desk::new(1000, |config| config.default_keep_alive = KeepAlive::Forever);
    desk.load(&plan("one", 1, 800, 800), None);
    desk.load(&plan("two", 1, 800, 800), Some(KeepAlive::Forever));
    assert_eq!((desk.loaded(), desk.refused.len()), (vec!["two".to_owned()], 0));
}

#[test]
fn the_lower_priority_makes_room() {
    let mut desk = Desk::new(2000, |_| {});
    let mut dear = plan("dear", 1, 800, 800);
    dear.terms.priority = 3;
    desk.load(&dear, Some(KeepAlive::ForMs(1_000)));
    desk.load(&plan("plain", 1, 800, 800), Some(KeepAlive::ForMs(60_000)));
    desk.load(&plan("third", 1, 800, 800), None);
    assert_eq!(desk.loaded(), ["dear", "third"]);
    // A request may lower it.
    dear.terms.priority = -1;
    desk.load(&dear, None);
    desk.load(&plan("fourth", 1, 800, 800), Some(KeepAlive::ForMs(1_000)));
    assert_eq!(desk.loaded(), ["fourth", "third"]);
}

fn http_config(slots: u16) -> HttpConfig {
    HttpConfig {
        address: ([127, 0, 0, 1], 0).into(),
        origins: Vec::new(),
        version: String::new(),
        api_key: None,
        context_tokens: 800,
        slots,
        kv_type: "f16".to_owned(),
        threads: 0,
        gpu_layers: -1,
        wired_limit_bytes: 0,
        rules: Rules::default(),
    }
}

/// The judgement over `m`, four slots of 800 tokens, that is 3300 bytes.
fn judged(desk: &Desk, learned: &Learned, ask: &Ask) -> Value {
    fit::judge(&model("m"), &http_config(4), learned, &desk.scheduler.snapshot(desk.now), ask).unwrap()
}

fn verdict(desk: &Desk) -> String {
    judged(desk, &Learned::default(), &Ask::default())["verdict"].as_str().unwrap().to_owned()
}

#[test]
fn a_judgement_says_what_a_request_would_meet() {
    let mut desk = Desk::new(4000, |_| {});
    assert_eq!(verdict(&desk), "now");
    desk.load(&plan("other", 1, 800, 800), None);
    let told = judged(&desk, &Learned::default(), &Ask::default());
    assert_eq!((&told["verdict"], &told["fits"]), (&json!("after_eviction"), &json!(true)));
    assert_eq!((&told["held"][0]["name"], &told["held_bytes"]), (&json!("other"), &json!(900)));
    assert_eq!((&told["needs"]["weights"], &told["needs"]["total"]), (&json!(100), &json!(3300)));
    assert_eq!((&told["largest"]["context_length"], &told["largest"]["slots"]), (&json!(975), &json!(4)));
    desk.load(&plan("other", 1, 800, 800), Some(KeepAlive::Forever));
    let told = judged(&desk, &Learned::default(), &Ask::default());
    assert_eq!((&told["verdict"], &told["fits"]), (&json!("pinned"), &json!(false)));
    assert_eq!((&told["largest"]["slots"], &told["held"][0]["pinned"]), (&json!(3), &json!(true)));
    desk.load(&plan("m", 3, 800, 800), None);
    assert_eq!(verdict(&desk), "loaded", "any request is served");
    let with = |slots| judged(&desk, &Learned::default(), &Ask { slots: Some(slots), ..Ask::default() });
    assert_eq!((&with(3)["verdict"], &with(4)["verdict"]), (&json!("loaded"), &json!("pinned")));
    assert_eq!(verdict(&Desk::new(3299, |_| {})), "never");
    assert_eq!(verdict(&Desk::new(3300, |_| {})), "now");
}

#[test]
fn a_judgement_knows_what_is_made_smaller_and_what_was_learned() {
    let desk = Desk::new(1000, |config| config.shrink = Shrink::Slots);
    let none = Learned::default();
    let told = judged(&desk, &none, &Ask::default());
    let smaller = json!({"slots": 1, "context_length": 800, "total": 900});
    assert_eq!((&told["verdict"], &told["made_smaller"]), (&json!("now"), &smaller));
    let told = judged(&desk, &none, &Ask { slots: Some(4), ..Ask::default() });
    assert_eq!(
        (&told["verdict"], &told["made_smaller"]),
        (&json!("never"), &json!(null)),
        "whoever asks for four wants four"
    );
    let mut learned = Learned::default();
    let kv_type = "f16".to_owned();
    let loaded =
        Loaded { model: harness::id("m"), slots: 1, context_tokens: 800, batch_tokens: 512, kv_type, estimate: 900 };
    learned.took(&loaded, 1001);
    let told = judged(&desk, &learned, &Ask { slots: Some(1), ..Ask::default() });
    assert_eq!((&told["verdict"], &told["needs"]["total"]), (&json!("never"), &json!(1001)));
    let bad = Ask { kv_type: Some("f17".to_owned()), ..Ask::default() };
    assert!(fit::judge(&model("m"), &http_config(4), &none, &desk.scheduler.snapshot(desk.now), &bad).is_err());
}

#[tokio::test]
async fn what_a_process_took_is_kept_and_used_for_the_next_plan() {
    let house = House::open(|_| {}).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("learned.json");
    let (learned, mut heard) = watch::channel(Learned::default());
    let following = tokio::spawn(learn::follow(house.handle.snapshots(), learned, path.clone()));
    let mut plan = house.plan("greedy", &Script { leak_bytes: 40 << 20, ..endless() });
    plan.memory.weights = 30 << 20;
    let spec = plan.spec.clone();
    let loaded = Loaded {
        model: plan.model.id.clone(),
        slots: spec.slots,
        context_tokens: spec.context_tokens,
        batch_tokens: spec.batch_tokens,
        kv_type: spec.kv_type,
        estimate: plan.memory.total(),
    };
    let mut ticket = house.ask(&plan).await;
    first_delta(&mut ticket).await;
    let took_more = heard.wait_for(|learned| learned.measured(&loaded).is_some_and(|bytes| bytes > 40 << 20));
    let permille = tokio::time::timeout(PATIENCE, took_more).await.expect("it is noticed").unwrap().permille(&loaded);
    assert!(permille > 1300, "{permille}");
    drop(ticket);
    house.close().await;
    following.await.unwrap();
    assert!(Learned::read(&path).permille(&loaded) >= permille, "it outlives the server");
}

#[tokio::test]
async fn the_limit_is_known_before_anything_happens() {
    let house = House::open(|config| config.scheduler.memory_limit = Some(4000)).await;
    let first = house.handle.snapshot();
    assert_eq!((first.limit_bytes, first.workers_max > 0, first.pins_hold), (Some(4000), true, true));
    let learned = Learned::default();
    let told = fit::judge(&model("m"), &http_config(4), &learned, &first, &Ask::default()).unwrap();
    assert_eq!((&told["verdict"], &told["limit"]), (&json!("now"), &json!(4000)));
    house.close().await;
}

#[test]
fn what_a_replaced_server_holds_is_nobody_s_and_is_waited_for() {
    let mut desk = Desk::new(4000, |_| {});
    desk.tell(Event::ElsewhereHeld { bytes: u64::MAX });
    assert_eq!(desk.scheduler.snapshot(desk.now).elsewhere_bytes, 4000);
    desk.load(&plan("m", 4, 800, 800), None);
    assert_eq!((desk.started.len(), desk.refused.len()), (0, 0), "it waits");
    desk.tell(Event::ElsewhereHeld { bytes: 701 });
    assert_eq!(desk.started.len(), 0);
    desk.tell(Event::ElsewhereHeld { bytes: 700 });
    assert_eq!((desk.loaded(), desk.refused.len()), (vec!["m".to_owned()], 0));
    // More there is no reason to let anybody go here.
    desk.tell(Event::ElsewhereHeld { bytes: 4000 });
    assert_eq!(desk.loaded(), ["m"]);
}

#[test]
fn what_is_held_elsewhere_is_in_no_group_s_ceiling() {
    let mut scheduler = Scheduler::new(SchedulerConfig { memory_limit: Some(4000), ..SchedulerConfig::default() }, 1);
    let mut out = Outbox::default();
    scheduler.step(Mono(1), Event::ElsewhereHeld { bytes: 500 }, &mut out);
    let plan = Box::new(plan("m", 1, 800, 800));
    scheduler.step(Mono(2), Event::Arrived { request: RequestId(1), job: Job::Load, plan, keep_alive: None }, &mut out);
    let ceilings = out.0.iter().filter_map(|effect| match effect {
        Effect::Spawn { ceiling_bytes, .. } => Some(*ceiling_bytes),
        _ => None,
    });
    assert_eq!(ceilings.collect::<Vec<_>>(), [3500]);
}

#[test]
fn a_replaced_server_keeps_no_model_for_later() {
    let mut desk = Desk::new(u64::MAX, |_| {});
    desk.load(&plan("idle", 1, 800, 800), Some(KeepAlive::Forever));
    let busy = Event::Arrived {
        request: RequestId(77),
        job: Job::Run(harness::request(77, "")),
        plan: Box::new(plan("busy", 1, 800, 800)),
        keep_alive: Some(KeepAlive::Forever),
    };
    desk.tell(busy);
    desk.tell(Event::Replaced);
    assert_eq!(desk.loaded(), ["busy"]);
    let (worker, _) = desk.started.last().unwrap().clone();
    desk.tell(Event::Ended { worker, request: RequestId(77) });
    desk.tell(Event::DeadlineElapsed);
    assert_eq!(desk.loaded(), Vec::<String>::new());
    // Whoever still comes is served, and leaves nothing behind.
    desk.load(&plan("late", 1, 800, 800), Some(KeepAlive::Forever));
    desk.tell(Event::DeadlineElapsed);
    assert_eq!((desk.started.len(), desk.loaded(), desk.refused.len()), (3, Vec::new(), 0));
}

#[test]
fn a_request_that_sets_a_lower_limit_than_its_loaded_model_takes_is_refused_with_the_numbers() {
    let mut desk = Desk::new(4000, |config| config.shrink = Shrink::Slots);
    desk.load(&plan("m", 2, 800, 800), None);
    let mut asked = plan("m", 2, 800, 800);
    asked.terms.limit = Some(1699);
    desk.load(&asked, None);
    let [(FailureKind::OutOfMemory, text)] = desk.refused.as_slice() else { panic!("{:?}", desk.refused) };
    assert!(
        text.contains("takes more memory (1.7 KB) than this request's ollmlx_memory_limit allows (1.6 KB)"),
        "{text}"
    );
    asked.terms.limit = Some(1700);
    desk.load(&asked, None);
    assert_eq!((desk.started.len(), desk.refused.len()), (1, 1), "at the limit it is served");
    // One that has to be loaded is made smaller for it.
    asked.terms.limit = Some(1699);
    desk.tell(Event::Unload { model: asked.model.id.clone() });
    desk.load(&asked, None);
    assert_eq!((desk.last_plan(), desk.refused.len()), ((1, 800, 900), 1));
}

#[test]
fn a_loaded_model_is_not_said_to_be_made_smaller() {
    let mut desk = Desk::new(3299, |config| config.shrink = Shrink::Slots);
    desk.load(&plan("m", 4, 800, 800), None);
    let told = judged(&desk, &Learned::default(), &Ask::default());
    let loaded = json!({"slots": 3, "context_length": 800, "budget": 2500});
    assert_eq!((&told["verdict"], &told["made_smaller"], &told["loaded"]), (&json!("loaded"), &json!(null), &loaded));
}

#[test]
fn a_judgement_of_a_model_that_rests_says_why() {
    let mut desk = Desk::new(4000, |config| config.shrink = Shrink::Slots);
    let cause = ollmlx_supervisor::scheduler::Cause::TooLarge { need: 5000, limit: 4000 };
    desk.load(&plan("m", 4, 800, 800), None);
    let (worker, _) = desk.started.last().unwrap().clone();
    for _ in 0..3 {
        let worker = WorkerId { incarnation: desk.started.last().unwrap().0.incarnation, ..worker.clone() };
        desk.tell(Event::Exited { worker, cause: cause.clone(), log_tail: String::new() });
        desk.load(&plan("m", 4, 800, 800), None);
    }
    let told = judged(&desk, &Learned::default(), &Ask::default());
    assert_eq!((&told["verdict"], &told["fits"]), (&json!("rests"), &json!(false)), "{told}");
    assert_eq!(told["rests"]["state"], "quarantined");
    assert!(told["rests"]["reason"].as_str().unwrap().contains("requires more memory"), "{told}");
}

#[test]
fn who_is_on_its_way_out_is_no_pin_and_no_reason_to_wait_for_others() {
    let mut desk = Desk::new(4000, |_| {});
    desk.load(&plan("other", 1, 800, 800), Some(KeepAlive::Forever));
    assert_eq!(verdict(&desk), "pinned");
    desk.are_slow = true;
    desk.tell(Event::Restart { model: harness::id("other") });
    assert!(desk.scheduler.snapshot(desk.now).workers[0].pinned, "it would be one if it stayed");
    assert_eq!(verdict(&desk), "after_eviction");
    desk.load(&plan("m", 4, 800, 800), None);
    assert_eq!(desk.refused.len(), 0, "as a request finds");
}

#[test]
fn a_judgement_knows_what_a_replaced_server_holds_and_what_was_asked_for() {
    let mut desk = Desk::new(4000, |_| {});
    desk.tell(Event::ElsewhereHeld { bytes: 701 });
    let ask = Ask { slots: Some(u16::MAX), context_tokens: Some(9000), kv_type: None };
    let told = judged(&desk, &Learned::default(), &Ask::default());
    assert_eq!((&told["verdict"], &told["fits"]), (&json!("after_others"), &json!(true)));
    assert_eq!((&told["held_by_predecessor"], &told["held_bytes"]), (&json!(701), &json!(701)));
    desk.tell(Event::ElsewhereHeld { bytes: 700 });
    assert_eq!(verdict(&desk), "now");
    let told = judged(&desk, &Learned::default(), &ask);
    assert_eq!(told["asked"], json!({"slots": 65535, "context_length": 9000}));
}
