//! `POST /api/ollmlx/fit`: whether and how a model fits, before anything is loaded.
//!
//! The judgement is a function of the model's card, the settings, what was learned and one moment of the scheduler, so that
//! the command line can make it as well where no server runs. It says what would happen to a request that came now, by
//! the same plan that such a request gets.

use std::sync::Arc;

use ollmlx_proto::limits::{CONTEXT_TOKENS_MAX, CONTEXT_TOKENS_MIN, SLOTS_MAX};
use serde_json::{Value, json};

use super::plan::{BATCH_TOKENS, LEAST_CONTEXT_TOKENS, Wish, load_plan, own_window, trained};
use super::respond::{HttpReply, json as json_reply};
use super::{AppState, HttpConfig, ops};
use crate::catalog::{Learned, ModelRef};
use crate::dialect::Rejection;
use crate::dialect::ollama::manage::FitRequest;
use crate::dialect::options::share;
use crate::os::wall::rfc3339_local;
use crate::types::{LoadPlan, Snapshot, WorkerView};

/// How a model would be loaded; what is left out is as for any request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// Window of a slot, in tokens.
    pub context_tokens: Option<u32>,
    /// Slots.
    pub slots: Option<u16>,
    /// Type of the caches.
    pub kv_type: Option<String>,
}

/// What would happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is loaded, and can serve that.
    Loaded,
    /// There is room.
    Now,
    /// Idle models make room at once.
    AfterEviction,
    /// Busy models make room when what they run has ended.
    AfterOthers,
    /// Its processes failed too often, and it is refused until it has rested.
    Rests,
    /// Models that are kept for ever are in the way.
    Pinned,
    /// It takes more than the limit.
    Never,
}

impl Verdict {
    fn words(self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Now => "now",
            Self::AfterEviction => "after_eviction",
            Self::AfterOthers => "after_others",
            Self::Rests => "rests",
            Self::Pinned => "pinned",
            Self::Never => "never",
        }
    }
}

/// `POST /api/ollmlx/fit`.
pub(super) async fn fit(state: &AppState, body: &[u8]) -> Result<HttpReply, Rejection> {
    let request = FitRequest::parse(body)?;
    let model = ops::model(state, &request.name).await?;
    let ask = Ask { context_tokens: request.num_ctx, slots: request.slots, kv_type: request.kv_type };
    let snapshot = state.handle.snapshot();
    let mut judged = judge(&model, &state.config, &state.learned.borrow(), &snapshot, &ask)?;
    if let Some(until) = snapshot.of(&model.id).and_then(|view| view.rests_until) {
        judged["rests"]["until"] = json!(rfc3339_local(state.handle.wall_clock_of(until)));
    }
    Ok(json_reply(200, judged.to_string()))
}

/// The judgement, as the endpoint tells it.
///
/// # Errors
/// A type of caches that isn't one, or a parameter of the model that makes no sense.
pub fn judge(
    model: &Arc<ModelRef>,
    config: &HttpConfig,
    learned: &Learned,
    snapshot: &Snapshot,
    ask: &Ask,
) -> Result<Value, Rejection> {
    let wish = wish(model, config, ask)?;
    let mut plan = load_plan(model, config, learned, &wish);
    if ask.context_tokens.is_none() {
        plan.terms.context_least = wish.context_tokens.min(LEAST_CONTEXT_TOKENS);
    }
    let room = Room::of(&plan, snapshot);
    // Whoever asks for a number of slots wants to know of that.
    let smaller = (plan.need() > room.at_most && ask.slots.is_none())
        .then(|| plan.shrunk(snapshot.shrink, room.at_most))
        .flatten();
    if smaller.is_none() {
        plan = plan.capped(room.at_most);
    }
    let verdict = room.verdict(smaller.as_ref().unwrap_or(&plan), snapshot, ask);
    let own = snapshot.of(&plan.model.id);
    let loaded = own.filter(|_| verdict == Verdict::Loaded);
    // One that is there is not made any smaller.
    let smaller = smaller.filter(|_| loaded.is_none());
    let (card, pass) = (&model.card.memory, (wish.batch_tokens, wish.kv_type.as_str()));
    let fits = |total: u64| plan.learned(total) <= room.at_most;
    let longest = trained(model);
    let (need, memory) = (plan.need(), plan.memory);
    Ok(json!({
        "model": model.name,
        "backend": model.backend.as_str(),
        "slots": wish.slots,
        "context_length": wish.context_tokens,
        "kv_type": wish.kv_type,
        "needs": {
            "weights": memory.weights,
            "caches": memory.kv,
            "compute": memory.compute,
            "learned": need - memory.total().min(need),
            "total": need,
        },
        "limit": snapshot.limit_bytes,
        "model_limit": plan.terms.limit,
        "held": room.held.iter().map(|view| holder(view, snapshot)).collect::<Vec<_>>(),
        "held_by_predecessor": snapshot.elsewhere_bytes,
        "held_bytes": room.held_bytes(),
        "fits": !matches!(verdict, Verdict::Rests | Verdict::Pinned | Verdict::Never),
        "verdict": verdict.words(),
        "asked": {"slots": ask.slots, "context_length": ask.context_tokens},
        "loaded": loaded.map(|view| {
            let budget = view.account.planned;
            json!({"slots": view.slots, "context_length": view.context_tokens, "budget": budget})
        }),
        "rests": own.filter(|view| view.rests_until.is_some()).map(|view| {
            json!({"state": view.state, "reason": view.last_death})
        }),
        "made_smaller": smaller.map(|plan| {
            let spec = &plan.spec;
            json!({"slots": spec.slots, "context_length": spec.context_tokens, "total": plan.need()})
        }),
        "largest": {
            "context_length": card.longest_context(wish.slots, longest, pass, fits),
            "context_length_at_one_slot": card.longest_context(1, longest, pass, fits),
            "slots": card.most_slots(SLOTS_MAX, wish.context_tokens, pass, fits),
        },
        "trained_context_length": longest,
    }))
}

fn wish(model: &Arc<ModelRef>, config: &HttpConfig, ask: &Ask) -> Result<Wish, Rejection> {
    let kv_type = ask.kv_type.clone().unwrap_or_else(|| config.kv_type.clone());
    if !matches!(kv_type.as_str(), "f16" | "q8_0" | "q4_0") {
        return Err(Rejection::bad_request(format!("{kv_type:?} is no type of caches: it must be f16, q8_0 or q4_0")));
    }
    let rule = config.rules.of(&model.name);
    let own = |key: &str| model.params.get(key).and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok());
    let context = ask.context_tokens.map(|tokens| tokens.clamp(CONTEXT_TOKENS_MIN, CONTEXT_TOKENS_MAX));
    Ok(Wish {
        slots: ask.slots.unwrap_or(config.slots).clamp(1, SLOTS_MAX),
        context_tokens: context.map_or_else(|| own_window(model, config), |tokens| tokens.min(trained(model))),
        batch_tokens: own("num_batch").filter(|tokens| *tokens > 0).unwrap_or(BATCH_TOKENS),
        threads: config.threads,
        gpu_layers: config.gpu_layers,
        kv_type,
        share: share(&serde_json::Map::new(), &model.params, (rule.memory_limit, rule.priority))?,
    })
}

/// Who holds what beside the model, and what is left.
struct Room<'a> {
    held: Vec<&'a WorkerView>,
    /// By the server that this one replaces.
    elsewhere: u64,
    /// Once everything that may go has gone.
    at_most: u64,
}

impl<'a> Room<'a> {
    fn of(plan: &LoadPlan, snapshot: &'a Snapshot) -> Self {
        let others = snapshot.workers.iter().filter(|view| view.worker.model != plan.model.id);
        let held: Vec<&WorkerView> = others.filter(|view| view.memory_bytes > 0).collect();
        let pinned = held.iter().filter(|view| is_pinned(view, snapshot)).map(|view| view.memory_bytes);
        let pinned = pinned.fold(0_u64, u64::saturating_add);
        let limit = snapshot.limit_bytes.unwrap_or(u64::MAX);
        let at_most = limit.saturating_sub(pinned).min(plan.terms.limit.unwrap_or(u64::MAX));
        Self { held, elsewhere: snapshot.elsewhere_bytes, at_most }
    }

    fn held_bytes(&self) -> u64 {
        self.held.iter().fold(self.elsewhere, |sum, view| sum.saturating_add(view.memory_bytes))
    }

    fn verdict(&self, plan: &LoadPlan, snapshot: &Snapshot, ask: &Ask) -> Verdict {
        let need = plan.need();
        let limit = snapshot.limit_bytes.unwrap_or(u64::MAX);
        let own = snapshot.of(&plan.model.id);
        if own.is_some_and(|view| matches!(view.state, "idle" | "busy") && serves(view, plan, ask)) {
            return Verdict::Loaded;
        }
        let pins = self.held.iter().filter(|view| is_pinned(view, snapshot)).count();
        let most = limit.min(plan.terms.limit.unwrap_or(u64::MAX));
        let made_smaller = || ask.slots.is_none() && plan.shrunk(snapshot.shrink, most).is_some();
        if plan.capped(most).need() > most && !made_smaller() {
            return Verdict::Never;
        }
        if own.is_some_and(|view| view.state == "quarantined") {
            return Verdict::Rests;
        }
        if need > self.at_most || pins >= snapshot.workers_max {
            return Verdict::Pinned;
        }
        let stays = |idle_go: bool| {
            let stay = self.held.iter().filter(|view| is_pinned(view, snapshot) || !(idle_go && goes_at_once(view)));
            stay.fold((self.elsewhere, 0), |(bytes, places), view| {
                (bytes.saturating_add(view.memory_bytes), places + 1)
            })
        };
        let fits = |(bytes, places): (u64, usize)| bytes.saturating_add(need) <= limit && places < snapshot.workers_max;
        match (fits(stays(false)), fits(stays(true))) {
            (true, _) => Verdict::Now,
            (_, true) => Verdict::AfterEviction,
            _ => Verdict::AfterOthers,
        }
    }
}

fn is_pinned(view: &WorkerView, snapshot: &Snapshot) -> bool {
    view.pinned && snapshot.pins_hold && !is_leaving(view)
}

fn is_leaving(view: &WorkerView) -> bool {
    matches!(view.state, "draining" | "exiting")
}

/// Whether nothing that it runs keeps it from making room, if it isn't about to already.
fn goes_at_once(view: &WorkerView) -> bool {
    view.state == "idle" || (is_leaving(view) && view.in_flight == 0)
}

/// Requests don't say how many slots there should be; who asks for a number here wants to know of that.
fn serves(view: &WorkerView, plan: &LoadPlan, ask: &Ask) -> bool {
    let account = &view.account;
    let needed = if account.shrunk { plan.terms.context_least } else { plan.spec.context_tokens };
    view.context_tokens >= needed
        && ask.slots.is_none_or(|asked| account.slots >= asked)
        && ask.kv_type.as_ref().is_none_or(|asked| account.kv_type == *asked)
}

fn holder(view: &WorkerView, snapshot: &Snapshot) -> Value {
    json!({
        "name": view.model.name,
        "bytes": view.memory_bytes,
        "state": view.state,
        "pinned": is_pinned(view, snapshot),
    })
}
