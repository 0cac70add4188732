//! Who gets room: what can never fit starts nothing, what is pinned stays, and what doesn't fit is made smaller.

use std::path::PathBuf;
use std::sync::Arc;

use harness::script::{Misfortune, Script};
use ollmlx_proto::{FailureKind, KvCells, MemoryReport, ModelId, Ready, RequestId, WorkerId};
use ollmlx_supervisor::catalog::{Correction, Learned, Loaded, ModelRef};
use ollmlx_supervisor::config::{Keys, Rules};
use ollmlx_supervisor::http::fit::Question;
use ollmlx_supervisor::http::{HttpConfig, learn};
use ollmlx_supervisor::scheduler::{Effect, Event, Outbox, Scheduler, SchedulerConfig};
use ollmlx_supervisor::types::{Caller, Job, KeepAlive, LoadPlan, LoadWish, Mono, Shrink};

use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::house::{House, endless, first_delta};

/// A scheduler, and who it started.
struct Desk {
    scheduler: Scheduler,
    now: Mono,
    next_request: u64,
    started: Vec<(WorkerId, Box<LoadPlan>)>,
    /// Why workers were to go.
    reasons: Vec<&'static str>,
    /// Processes that were told to go take their time.
    are_slow: bool,
    refused: Vec<(FailureKind, String)>,
}

impl Desk {
    fn new(limit: u64, change: impl FnOnce(&mut SchedulerConfig)) -> Self {
        let mut config = SchedulerConfig { memory_limit: Some(limit), ..SchedulerConfig::default() };
        change(&mut config);
        let scheduler = Scheduler::new(config, 1);
        let (started, reasons, refused) = (Vec::new(), Vec::new(), Vec::new());
        Self { scheduler, now: Mono(1), next_request: 1, started, reasons, are_slow: false, refused }
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
                        let cause = ollmlx_supervisor::types::Cause::Exited { code: 0 };
                        owed.push(Event::Exited { worker, cause, log_tail: String::new() });
                    }
                    Effect::Fail { failure, .. } => self.refused.push((failure.kind, failure.public)),
                    Effect::Transition { reason, .. } => self.reasons.extend(reason),
                    Effect::Never { what } => panic!("{what}"),
                    _ => {}
                }
            }
        }
    }

    fn load(&mut self, plan: &LoadPlan, keep_alive: Option<KeepAlive>) {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        let (plan, client) = (Box::new(plan.clone()), Caller::default());
        self.tell(Event::Arrived { request, job: Job::Load, plan, keep_alive, client });
    }

    fn loaded(&self) -> Vec<String> {
        let living = self.scheduler.snapshot().workers.into_iter().filter(|view| view.pid.is_some());
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
    let view = desk.scheduler.snapshot().workers.remove(0);
    assert!(view.account.shrunk);
    assert_eq!((view.context_tokens, view.account.planned), (799, 868));
    desk.load(&plan("m", 1, 800, 800), None);
    assert_eq!((desk.started.len(), desk.refused.len()), (1, 1), "one that needs all of it is refused");
    assert_eq!(desk.loaded(), ["m"], "and the others' process stays");
}

#[test]
fn what_was_learned_counts_and_never_lowers_the_estimate() {
    let mut known = plan("m", 1, 800, 800);
    known.terms.learned = Correction { permille: 500, bytes: 450 };
    assert_eq!(known.need(), 1350);
    known.terms.learned.bytes = 0;
    assert_eq!(known.need(), 900);
    known.terms.learned = Correction { permille: u32::MAX, bytes: u64::MAX };
    known.memory.weights = u64::MAX;
    assert_eq!(known.need(), u64::MAX);
}

#[test]
fn what_was_learned_makes_smaller_and_refuses_nobody() {
    let started = |limit, own, shrink| {
        let mut desk = Desk::new(limit, |config| config.shrink = shrink);
        let mut known = plan("m", 4, 800, 800);
        known.terms.learned = Correction { permille: 500, bytes: 1650 };
        known.terms.limit = own;
        desk.load(&known, None);
        desk.started.last().map(|(_, plan)| (plan.spec.slots, plan.need(), plan.spec.memory_limit_bytes))
    };
    assert_eq!(started(4950, None, Shrink::Nothing), Some((4, 4950, 4950)));
    assert_eq!(started(4949, None, Shrink::Nothing), Some((4, 4949, 4949)), "it gets what there is");
    assert_eq!(started(3300, None, Shrink::Nothing), Some((4, 3300, 3300)));
    assert_eq!(started(9000, Some(3400), Shrink::Nothing), Some((4, 3400, 3400)), "of its own limit as well");
    assert_eq!(started(3299, None, Shrink::Nothing), None, "the estimate decides");
    assert_eq!(started(4949, None, Shrink::Slots), Some((3, 3750, 3750)));
    assert_eq!(started(1350, None, Shrink::Slots), Some((1, 1350, 1350)));
    assert_eq!(started(1349, None, Shrink::Slots), Some((1, 1349, 1349)), "though none is small enough");
    assert_eq!(started(899, None, Shrink::Slots), None);
}

#[test]
fn what_the_system_counts_is_what_is_measured_and_a_worker_s_own_word_counts_whenever_it_comes() {
    let mut desk = Desk::new(2000, |_| {});
    desk.load(&plan("m", 1, 800, 800), None);
    let worker = desk.started[0].0.clone();
    let told = |desk: &Desk| {
        let view = desk.scheduler.snapshot();
        let account = view.workers[0].account.clone();
        assert_eq!((account.measured, account.ready.total()), (view.measured_bytes, account.reported), "one truth");
        (account.measured, account.reported, view.reserved_bytes)
    };
    assert_eq!(told(&desk), (900, 900, 900), "nothing else is known");
    desk.tell(Event::MemorySampled { worker: worker.clone(), bytes: 700 });
    assert_eq!(told(&desk), (700, 900, 900));
    let memory = MemoryReport { weights: 100, kv: 800, compute: 100 };
    desk.tell(Event::MemoryReported { worker: worker.clone(), memory });
    assert_eq!(told(&desk), (700, 1000, 1000));
    desk.tell(Event::MemoryReported { worker, memory: MemoryReport { compute: 0, kv: 0, weights: 100 } });
    assert_eq!(told(&desk), (700, 100, 900));
}

#[test]
fn the_log_hears_why_an_idle_one_goes() {
    let mut desk = Desk::new(1000, |_| {});
    desk.load(&plan("one", 1, 800, 800), Some(KeepAlive::ForMs(10_000)));
    desk.load(&plan("two", 1, 800, 800), Some(KeepAlive::ForMs(10_000)));
    let two = desk.started[1].0.clone();
    desk.tell(Event::MemorySampled { worker: two, bytes: 1_000 });
    desk.load(&plan("three", 1, 800, 800), Some(KeepAlive::ForMs(10_000)));
    desk.now = desk.now.plus_ms(10_000);
    desk.tell(Event::DeadlineElapsed);
    let memory = "memory is short and it has nothing to do";
    assert_eq!(desk.reasons, ["another model needs its place", memory, "its keep-alive is over"]);
    assert!(desk.refused.is_empty() && desk.loaded().is_empty());
}

#[test]
fn row_80_a_pinned_model_stays_and_is_named_with_its_bytes() {
    let mut desk = Desk::new(1500, |_| {});
    desk.load(&plan("one", 1, 800, 800), Some(KeepAlive::Forever));
    desk.load(&plan("two", 1, 800, 800), None);
    assert_eq!(desk.loaded(), ["one"]);
    let [(FailureKind::OutOfMemory, text)] = desk.refused.as_slice() else { panic!("{:?}", desk.refused) };
    assert!(text.contains("kept for ever: one (900 B)"), "{text}");
    // Once it is let go there is room.
    desk.load(&plan("one", 1, 800, 800), Some(KeepAlive::ForMs(60_000)));
    desk.load(&plan("two", 1, 800, 800), None);
    assert_eq!(desk.loaded(), ["two"]);
}

#[test]
fn row_80_models_kept_for_ever_beyond_their_share_give_way() {
    // Of the memory: both were used, and one of them is beyond the half.
    let mut desk = Desk::new(2000, |_| {});
    desk.load(&plan("one", 1, 800, 800), Some(KeepAlive::Forever));
    desk.now = desk.now.plus_ms(1);
    desk.load(&plan("two", 1, 800, 800), Some(KeepAlive::Forever));
    desk.load(&plan("three", 1, 800, 800), None);
    assert_eq!((desk.loaded(), desk.refused.len()), (vec!["three".to_owned(), "two".to_owned()], 0));

    // Of the places: those used longest ago go, and the younger half stays whoever comes.
    let mut desk = Desk::new(u64::MAX, |config| config.workers_max = 4);
    for name in ["a", "b", "c", "d"] {
        desk.load(&plan(name, 1, 800, 800), Some(KeepAlive::Forever));
        desk.now = desk.now.plus_ms(1);
    }
    desk.load(&plan("e", 1, 800, 800), None);
    assert_eq!(desk.loaded(), ["b", "c", "d", "e"]);
    for name in ["f", "g", "h"] {
        desk.now = desk.now.plus_ms(1);
        desk.load(&plan(name, 1, 800, 800), None);
    }
    assert_eq!((desk.loaded(), desk.refused.len()), (["c", "d", "g", "h"].map(str::to_owned).to_vec(), 0));
    let pinned = desk.scheduler.snapshot().workers.into_iter().filter(|view| view.pinned);
    assert_eq!(pinned.count(), 2);
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
        allowed_hosts: Vec::new(),
        keys: Keys::default(),
        context_tokens: 800,
        slots,
        kv_type: "f16".to_owned(),
        flash_attention: Default::default(),
        threads: 0,
        gpu_layers: -1,
        wired_limit_bytes: 0,
        rules: Rules::default(),
    }
}

/// The judgement over `m`, four slots of 800 tokens, that is 3300 bytes.
fn judged(desk: &Desk, learned: &Learned, ask: &LoadWish) -> Value {
    let question = Question::new(&model("m"), &http_config(4), learned, ask.clone()).unwrap();
    question.told(&desk.scheduler.snapshot(), &desk.scheduler.outlook(&question.wished()))
}

fn verdict(desk: &Desk) -> String {
    judged(desk, &Learned::default(), &LoadWish::default())["verdict"].as_str().unwrap().to_owned()
}

#[test]
fn a_judgement_says_what_a_request_would_meet() {
    let mut desk = Desk::new(4000, |_| {});
    assert_eq!(verdict(&desk), "now");
    desk.load(&plan("other", 1, 800, 800), None);
    let told = judged(&desk, &Learned::default(), &LoadWish::default());
    assert_eq!((&told["verdict"], &told["fits"]), (&json!("after_eviction"), &json!(true)));
    assert_eq!((&told["held"][0]["name"], &told["held_bytes"]), (&json!("other"), &json!(900)));
    assert_eq!((&told["needs"]["weights"], &told["needs"]["total"]), (&json!(100), &json!(3300)));
    assert_eq!((&told["largest"]["context_length"], &told["largest"]["slots"]), (&json!(975), &json!(4)));
    desk.load(&plan("other", 1, 800, 800), Some(KeepAlive::Forever));
    let told = judged(&desk, &Learned::default(), &LoadWish::default());
    assert_eq!((&told["verdict"], &told["fits"]), (&json!("pinned"), &json!(false)));
    assert_eq!((&told["largest"]["slots"], &told["held"][0]["pinned"]), (&json!(3), &json!(true)));
    desk.load(&plan("m", 3, 800, 800), None);
    assert_eq!(verdict(&desk), "loaded", "any request is served");
    let with = |slots| judged(&desk, &Learned::default(), &LoadWish { slots: Some(slots), ..LoadWish::default() });
    assert_eq!((&with(3)["verdict"], &with(4)["verdict"]), (&json!("loaded"), &json!("pinned")));
    assert_eq!(verdict(&Desk::new(3299, |_| {})), "never");
    assert_eq!(verdict(&Desk::new(3300, |_| {})), "now");
}

#[test]
fn a_judgement_knows_what_is_made_smaller_and_what_was_learned() {
    let desk = Desk::new(1000, |config| config.shrink = Shrink::Slots);
    let none = Learned::default();
    let told = judged(&desk, &none, &LoadWish::default());
    let smaller = json!({"slots": 1, "context_length": 800, "total": 900});
    assert_eq!((&told["verdict"], &told["made_smaller"]), (&json!("now"), &smaller));
    let told = judged(&desk, &none, &LoadWish { slots: Some(4), ..LoadWish::default() });
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
    let told = judged(&desk, &learned, &LoadWish { slots: Some(1), ..LoadWish::default() });
    let needs = |told: &Value| (told["verdict"].clone(), told["needs"]["total"].clone());
    assert_eq!(needs(&told), (json!("now"), json!(1000)), "it gets what there is");
    let roomy = Desk::new(3671, |config| config.shrink = Shrink::Slots);
    let told = judged(&roomy, &learned, &LoadWish::default());
    assert_eq!(needs(&told), (json!("now"), json!(3401)), "as much more as one slot took");
    let told = judged(&roomy, &learned, &LoadWish { slots: Some(1), ..LoadWish::default() });
    assert_eq!(needs(&told), (json!("now"), json!(1001)));
    let bad = LoadWish { kv_type: Some("f17".to_owned()), ..LoadWish::default() };
    assert!(Question::new(&model("m"), &http_config(4), &none, bad).is_err());
}

/// What is kept once whatever lives has gone.
struct School {
    folder: tempfile::TempDir,
    forget: mpsc::Sender<ModelId>,
    following: JoinHandle<()>,
}

impl School {
    fn open(house: &House) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (learned, _) = watch::channel(Learned::default());
        let (forget, forgotten) = mpsc::channel(learn::FORGET_LEN_MAX);
        let path = folder.path().join("learned.json");
        let following = tokio::spawn(learn::follow(house.handle.snapshots(), learned, path, forgotten));
        Self { folder, forget, following }
    }

    /// Bytes that a process took that was loaded like this.
    async fn close(self, house: House, plan: &LoadPlan) -> Option<u64> {
        house.close().await;
        self.following.await.unwrap();
        let spec = plan.spec.clone();
        let loaded = Loaded {
            model: plan.model.id.clone(),
            slots: spec.slots,
            context_tokens: spec.context_tokens,
            batch_tokens: spec.batch_tokens,
            kv_type: spec.kv_type,
            estimate: plan.memory.total(),
        };
        Learned::read(&self.folder.path().join("learned.json")).measured(&loaded)
    }
}

/// A model of 30 MB by its estimate, of which a process takes 40 more than nothing.
fn greedy(house: &House, script: Script) -> LoadPlan {
    let mut plan = house.plan("greedy", &Script { leak_bytes: 40 << 20, ..script });
    plan.memory.weights = 30 << 20;
    plan
}

#[tokio::test]
async fn what_a_process_took_is_kept_once_it_has_ended() {
    let house = House::open(|_| {}).await;
    let school = School::open(&house);
    let plan = greedy(&house, endless());
    let mut ticket = house.ask(&plan).await;
    first_delta(&mut ticket).await;
    house.until_worker(&plan, |worker| worker.account.measured > 40 << 20).await;
    drop(ticket);
    let kept = school.close(house, &plan).await;
    assert!(kept.is_some_and(|bytes| bytes > 40 << 20), "{kept:?}");
}

#[tokio::test]
async fn one_that_died_and_one_that_was_to_be_forgotten_teach_nothing() {
    let house = House::open(|_| {}).await;
    let school = School::open(&house);
    let plan = greedy(&house, Script { misfortune: Some((2, Misfortune::Kill)), unlucky_until: 1, ..endless() });
    let mut ticket = house.ask(&plan).await;
    let second = house.until_worker(&plan, |worker| worker.worker.incarnation.0 == 2 && worker.state == "busy").await;
    first_delta(&mut ticket).await;
    assert_eq!(second.restarts, 1);
    house.until_worker(&plan, |worker| worker.account.measured > 40 << 20).await;
    school.forget.send(plan.model.id.clone()).await.unwrap();
    // It has been taken in once the place for another is free.
    for _ in 0..learn::FORGET_LEN_MAX {
        school.forget.send(harness::id("other")).await.unwrap();
    }
    drop(ticket);
    assert_eq!(school.close(house, &plan).await, None);
}

#[tokio::test]
async fn the_limit_is_known_before_anything_happens() {
    let house = House::open(|config| config.scheduler.memory_limit = Some(4000)).await;
    let first = house.handle.snapshot();
    assert_eq!((first.limit_bytes, first.workers_max > 0), (Some(4000), true));
    let question = Question::new(&model("m"), &http_config(4), &Learned::default(), LoadWish::default()).unwrap();
    let outlook = house.handle.outlook(question.wished()).await.expect("the driver lives");
    let told = question.told(&first, &outlook);
    assert_eq!((&told["verdict"], &told["limit"]), (&json!("now"), &json!(4000)));
    house.close().await;
}

#[test]
fn what_a_replaced_server_holds_is_nobody_s_and_is_waited_for() {
    let mut desk = Desk::new(4000, |_| {});
    desk.tell(Event::ElsewhereHeld { bytes: u64::MAX });
    assert_eq!(desk.scheduler.snapshot().elsewhere_bytes, 4000);
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
    let (request, client) = (RequestId(1), Caller::default());
    scheduler.step(Mono(2), Event::Arrived { request, job: Job::Load, plan, keep_alive: None, client }, &mut out);
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
        client: Caller::default(),
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
        text.contains("takes more memory (1.7 KB) than the limit that this request has for it allows (1.6 KB)"),
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
    let told = judged(&desk, &Learned::default(), &LoadWish::default());
    let loaded = json!({"slots": 3, "context_length": 800, "budget": 2500});
    assert_eq!((&told["verdict"], &told["made_smaller"], &told["loaded"]), (&json!("loaded"), &json!(null), &loaded));
}

#[test]
fn a_judgement_of_a_model_that_rests_says_why() {
    let mut desk = Desk::new(4000, |config| config.shrink = Shrink::Slots);
    let cause = ollmlx_supervisor::types::Cause::TooLarge { own: u64::MAX, need: 5000, limit: 4000 };
    desk.load(&plan("m", 4, 800, 800), None);
    let (worker, _) = desk.started.last().unwrap().clone();
    for _ in 0..3 {
        let worker = WorkerId { incarnation: desk.started.last().unwrap().0.incarnation, ..worker.clone() };
        desk.tell(Event::Exited { worker, cause: cause.clone(), log_tail: String::new() });
        desk.load(&plan("m", 4, 800, 800), None);
    }
    let told = judged(&desk, &Learned::default(), &LoadWish::default());
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
    assert_eq!(desk.scheduler.snapshot().workers[0].keep_alive, KeepAlive::Forever, "it would be one if it stayed");
    assert_eq!(verdict(&desk), "after_eviction");
    desk.load(&plan("m", 4, 800, 800), None);
    assert_eq!(desk.refused.len(), 0, "as a request finds");
}

#[test]
fn a_judgement_knows_what_a_replaced_server_holds_and_what_was_asked_for() {
    let mut desk = Desk::new(4000, |_| {});
    desk.tell(Event::ElsewhereHeld { bytes: 701 });
    let ask = LoadWish { slots: Some(u16::MAX), context_tokens: Some(9000), kv_type: None };
    let told = judged(&desk, &Learned::default(), &LoadWish::default());
    assert_eq!((&told["verdict"], &told["fits"]), (&json!("after_others"), &json!(true)));
    assert_eq!((&told["held_by_predecessor"], &told["held_bytes"]), (&json!(701), &json!(701)));
    desk.tell(Event::ElsewhereHeld { bytes: 700 });
    assert_eq!(verdict(&desk), "now");
    let told = judged(&desk, &Learned::default(), &ask);
    assert_eq!(told["asked"], json!({"slots": 65535, "context_length": 9000}));
}
