//! `POST /api/ollmlx/fit`: whether and how a model fits, before anything is loaded.
//!
//! The scheduler itself is asked what would become of a request that came now, with the plan that such a request gets: there
//! is no second judgement that could promise what the first one doesn't keep. Where no server runs the command line asks
//! one of its own, which has nothing loaded.

use std::sync::Arc;

use crate::limits::{CONTEXT_TOKENS_MAX, CONTEXT_TOKENS_MIN, SLOTS_MAX};
use serde_json::{Value, json};

use super::asker::Asker;
use super::body::Body;
use super::config::HttpConfig;
use super::ops;
use super::plan::{BATCH_TOKENS, LEAST_CONTEXT_TOKENS, Wish, load_plan, own_window, trained};
use super::respond::{HttpReply, json as json_reply};
use super::state::AppState;
use crate::catalog::{Learned, ModelRef};
use crate::dialect::Rejection;
use crate::dialect::ollama::manage::FitRequest;
use crate::dialect::options::share;
use crate::os::wall::rfc3339_local;
use crate::types::{LoadPlan, LoadWish, Outlook, Prospect, Snapshot, WishedLoad, WorkerView};

/// `POST /api/ollmlx/fit`.
pub(super) async fn fit(state: &AppState, asker: &Asker, body: Body) -> Result<HttpReply, Rejection> {
    let (request, _hold) = body.parse(FitRequest::parse).await?;
    let model = ops::model(state, asker, &request.name).await?;
    let ask = LoadWish { context_tokens: request.num_ctx, slots: request.slots, kv_type: request.kv_type };
    let question = Question::new(&model, &state.config, &state.learned.borrow(), ask)?;
    let Some(outlook) = state.handle.outlook(question.wished()).await else {
        return Err(Rejection::new(503, "server is shutting down"));
    };
    let snapshot = state.handle.snapshot();
    let mut told = question.told(&snapshot, &outlook);
    if let Some(until) = snapshot.of(&model.id).and_then(|view| view.rests_until) {
        told["rests"]["until"] = json!(rfc3339_local(state.handle.wall_clock_of(until)));
    }
    Ok(json_reply(200, told.to_string()))
}

/// Whether a model would fit: what the scheduler is asked, and what is told of its answer.
#[derive(Debug)]
pub struct Question {
    wish: Wish,
    plan: LoadPlan,
    ask: LoadWish,
}

impl Question {
    /// By the same plan that a request gets.
    ///
    /// # Errors
    /// A type of caches that isn't one, or a parameter of the model that makes no sense.
    pub fn new(
        model: &Arc<ModelRef>,
        config: &HttpConfig,
        learned: &Learned,
        ask: LoadWish,
    ) -> Result<Self, Rejection> {
        let wish = wish(model, config, &ask)?;
        let mut plan = load_plan(model, config, learned, &wish);
        if ask.context_tokens.is_none() {
            plan.terms.context_least = wish.context_tokens.min(LEAST_CONTEXT_TOKENS);
        }
        Ok(Self { wish, plan, ask })
    }

    /// What the scheduler is asked.
    #[must_use]
    pub fn wished(&self) -> WishedLoad {
        WishedLoad { plan: self.plan.clone(), wish: self.ask.clone() }
    }

    /// The answer, as the endpoint tells it, with who holds what at that moment.
    #[must_use]
    pub fn told(&self, snapshot: &Snapshot, outlook: &Outlook) -> Value {
        let (wish, model, at_most) = (&self.wish, &self.plan.model, outlook.at_most);
        let made_smaller = outlook.smaller.as_ref().filter(|plan| plan.terms.shrunk);
        // Less of what was learned is no other way to load it.
        let plan = if made_smaller.is_some() { self.plan.clone() } else { self.plan.capped(at_most) };
        let own = snapshot.of(&model.id);
        let loaded = own.filter(|_| outlook.prospect == Prospect::Loaded);
        let held: Vec<&WorkerView> =
            snapshot.workers.iter().filter(|view| view.worker.model != model.id && view.memory_bytes > 0).collect();
        let held_bytes = held.iter().fold(snapshot.elsewhere_bytes, |sum, view| sum.saturating_add(view.memory_bytes));
        let (need, memory) = (plan.need(), plan.memory);
        json!({
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
            "held": held.iter().map(|view| holder(view)).collect::<Vec<_>>(),
            "held_by_predecessor": snapshot.elsewhere_bytes,
            "held_bytes": held_bytes,
            "fits": !matches!(outlook.prospect, Prospect::Rests | Prospect::Pinned | Prospect::Never),
            "verdict": outlook.prospect.name(),
            "asked": {"slots": self.ask.slots, "context_length": self.ask.context_tokens},
            "loaded": loaded.map(|view| {
                let budget = view.account.planned;
                json!({"slots": view.slots, "context_length": view.context_tokens, "budget": budget})
            }),
            "rests": own.filter(|view| view.rests_until.is_some()).map(|view| {
                json!({"state": view.state, "reason": view.last_death})
            }),
            "made_smaller": made_smaller.map(|plan| {
                let spec = &plan.spec;
                json!({"slots": spec.slots, "context_length": spec.context_tokens, "total": plan.need()})
            }),
            "largest": self.largest(&plan, at_most),
            "trained_context_length": trained(model),
        })
    }

    /// What would fit in so many bytes at most.
    fn largest(&self, plan: &LoadPlan, at_most: u64) -> Value {
        let (wish, card) = (&self.wish, &plan.model.card.memory);
        let (pass, longest) = ((wish.batch_tokens, wish.kv_type.as_str()), trained(&plan.model));
        let fits = |total: u64| plan.learned(total) <= at_most;
        json!({
            "context_length": card.longest_context(wish.slots, longest, pass, fits),
            "context_length_at_one_slot": card.longest_context(1, longest, pass, fits),
            "slots": card.most_slots(SLOTS_MAX, wish.context_tokens, pass, fits),
        })
    }
}

fn wish(model: &Arc<ModelRef>, config: &HttpConfig, ask: &LoadWish) -> Result<Wish, Rejection> {
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

fn holder(view: &WorkerView) -> Value {
    json!({
        "name": view.model.public_name(),
        "bytes": view.memory_bytes,
        "state": view.state,
        "pinned": view.pinned,
    })
}
