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
    refused: Vec<(FailureKind, String)>,
}

impl Desk {
    fn new(limit: u64, change: impl FnOnce(&mut SchedulerConfig)) -> Self {
        let mut config = SchedulerConfig { memory_limit: Some(limit), ..SchedulerConfig::default() };
        change(&mut config);
        let scheduler = Scheduler::new(config, 1);
        Self { scheduler, now: Mono(1), next_request: 1, started: Vec::new(), refused: Vec::new() }
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
    sized(name, 100, 32)
}

/// A model with so many bytes of weights, and for each 32 tokens of each slot.
pub(crate) fn sized(name: &str, weights: u64, bytes_of_32: u64) -> Arc<ModelRef> {
    let mut model = (*harness::model(name, PathBuf::from(name))).clone();
    let mut card = (*model.card).clone();
    card.memory.weights = weights;
    card.memory.kv = vec![KvCells { elements: 1, window_tokens: 0, slack_tokens: 0, multiple: 1, shared: false }];
    card.memory.kv_bytes_of_32.insert("f16".to_owned(), bytes_of_32);
    card.memory.context_max = 4096;
    model.card = Arc::new(card);
    Arc::new(model)
}

pub(crate) fn plan(name: &str, slots: u16, context_tokens: u32, context_least: u32) -> LoadPlan {
    plan_of(&model(name), slots, context_tokens, context_least)
}

pub(crate) fn plan_of(model: &Arc<ModelRef>, slots: u16, context_tokens: u32, context_least: u32) -> LoadPlan {
    let mut plan = harness::plan(model, context_tokens, 0);
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
    assert!(text.starts_with("model requires more memory (0 MiB) than the limit allows (0 MiB)"), "{text}");
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
    assert!(text.contains("kept for ever: one (900 bytes), two (900 bytes)"), "{text}");
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
