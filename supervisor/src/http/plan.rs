//! A call and its model to a job and a load plan: defaults, capabilities, the window, the estimate.
//!
//! Order of the checks as Ollama's: raw conflicts, thinking, capabilities, options.

use std::sync::Arc;

use crate::limits::{CONTEXT_TOKENS_MAX, SLOTS_MAX};
use ollmlx_proto::{
    CacheSalt, Capability, Limits, LoadSpec, Request, RequestId, ResumePoint, ThinkLevel, ThinkMode, UnixSeconds,
};

use super::config::HttpConfig;
use super::work::take_work;
use crate::catalog::{Learned, Loaded, ModelRef};
use crate::dialect::options::{Share, Window, sampling, share};
use crate::dialect::{Call, CallBody, Rejection};
use crate::os::rng;
use crate::types::{Job, LoadPlan, Terms};

/// Tokens of one pass where nobody asks for another number.
pub(super) const BATCH_TOKENS: u32 = 512;

/// Window below which none is made smaller, and room for the answer of a request that doesn't say how long it may be.
pub(super) const LEAST_CONTEXT_TOKENS: u32 = 1024;

/// What is handed to the driver.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) job: Job,
    pub(super) plan: LoadPlan,
}

/// Plans a call. `verb` is what a model that can't is said not to support.
///
/// # Errors
/// What the model can't do, or an option that is no option.
pub(super) fn plan(
    mut call: Call,
    model: &Arc<ModelRef>,
    (config, learned): (&HttpConfig, &Learned),
    verb: &str,
) -> Result<Planned, Rejection> {
    call.body.check_raw()?;
    let think = thinking(&call, model)?;
    check_capabilities(&call, model, verb)?;
    let (sampling, stop, window) = sampling(&call.options, &model.params, call.openai_defaults, rng::luck())?;
    let rule = config.rules.of(&model.name);
    let share = share(&call.options, &model.params, (rule.memory_limit, rule.priority))?;
    let defaults = own_window(model, config);
    let asked = window.num_ctx.unwrap_or(defaults).min(trained(model));
    let stated = call.options.get("num_ctx").is_some_and(|value| !value.is_null());
    let mut plan = load_plan(model, config, learned, &Wish::of(&window, share, config, asked.max(defaults)));
    let limits = Limits {
        max_tokens: window.max_tokens(),
        context_tokens: asked,
        truncate: call.truncate,
        // -2 is "until the context is full".
        shift: call.shift.unwrap_or(true) && window.num_predict != Some(-2),
        keep_tokens: window.num_keep,
    };
    let work = match take_work(&mut call, model, think) {
        Some(work) => work,
        None => {
            plan.terms.context_least = if stated { asked } else { asked.min(LEAST_CONTEXT_TOKENS) };
            return Ok(Planned { job: Job::Load, plan });
        }
    };
    let request = Request {
        id: RequestId(0),
        work,
        sampling,
        stop,
        format: call.format,
        limits,
        logprobs: call.logprobs,
        asked_at: UnixSeconds::default(),
        cache_salt: CacheSalt::default(),
        progress: ResumePoint::default(),
    };
    plan.terms.context_least = if stated { asked } else { asked.min(needed_context(&request)) };
    Ok(Planned { job: Job::Run(Box::new(request)), plan })
}

/// A window that is certainly enough for a request that asks for none: a token is at least a byte, and what a message
/// takes here beside its text is more than what a template adds to it.
fn needed_context(request: &Request) -> u32 {
    let prompt = u32::try_from(request.bytes()).unwrap_or(u32::MAX);
    prompt.saturating_add(request.limits.max_tokens.unwrap_or(LEAST_CONTEXT_TOKENS)).max(LEAST_CONTEXT_TOKENS)
}

/// The window the model was trained for.
pub(super) fn trained(model: &ModelRef) -> u32 {
    match model.card.context_length {
        0 => CONTEXT_TOKENS_MAX,
        length => length,
    }
}

/// The window of a model that nobody asks otherwise of: its own parameter, else the setting.
pub(super) fn own_window(model: &ModelRef, config: &HttpConfig) -> u32 {
    let own = model.params.get("num_ctx").and_then(serde_json::Value::as_u64);
    let own = own.and_then(|tokens| u32::try_from(tokens).ok()).filter(|&tokens| tokens > 0);
    own.unwrap_or(config.context_tokens).min(trained(model))
}

/// How a model is to be loaded, as far as a request can say.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) slots: u16,
    pub(super) context_tokens: u32,
    pub(super) batch_tokens: u32,
    pub(super) threads: u16,
    pub(super) gpu_layers: i32,
    pub(super) kv_type: String,
    pub(super) share: Share,
}

impl Wish {
    pub(super) fn of(window: &Window, share: Share, config: &HttpConfig, context_tokens: u32) -> Self {
        Self {
            slots: config.slots.clamp(1, SLOTS_MAX),
            context_tokens,
            batch_tokens: window.num_batch.unwrap_or(BATCH_TOKENS),
            threads: window.num_thread.unwrap_or(config.threads),
            gpu_layers: window.num_gpu.unwrap_or(config.gpu_layers),
            kv_type: config.kv_type.clone(),
            share,
        }
    }
}

/// The plan for a wish. The window is needed as it is, unless the caller knows better.
pub(super) fn load_plan(model: &Arc<ModelRef>, config: &HttpConfig, learned: &Learned, wish: &Wish) -> LoadPlan {
    let memory = model.card.memory.estimate(wish.slots, wish.context_tokens, wish.batch_tokens, &wish.kv_type);
    let loaded = Loaded {
        model: model.id.clone(),
        slots: wish.slots,
        context_tokens: wish.context_tokens,
        batch_tokens: wish.batch_tokens,
        kv_type: wish.kv_type.clone(),
        estimate: memory.total(),
    };
    // Whether the present formula makes its estimate.
    let is_current = |known: &Loaded| {
        let Loaded { slots, context_tokens, batch_tokens, kv_type, estimate, .. } = known;
        model.card.memory.estimate(*slots, *context_tokens, *batch_tokens, kv_type).total() == *estimate
    };
    let terms = Terms {
        learned: learned.correction(&loaded, is_current),
        limit: wish.share.memory_limit,
        priority: wish.share.priority,
        context_least: wish.context_tokens,
        shrunk: false,
    };
    let spec = LoadSpec {
        weights: model.weights.clone(),
        adapters: model.adapters.clone(),
        go_template: model.template.clone(),
        slots: wish.slots,
        context_tokens: wish.context_tokens,
        batch_tokens: wish.batch_tokens,
        threads: wish.threads,
        gpu_layers: wish.gpu_layers,
        kv_type: wish.kv_type.clone(),
        flash_attention: config.flash_attention,
        embedding: model.can(Capability::Embedding),
        cpu_level: String::new(),
        memory_limit_bytes: 0,
        wired_limit_bytes: config.wired_limit_bytes,
    };
    let mut plan = LoadPlan { model: Arc::clone(model), spec, memory, terms };
    plan.spec.memory_limit_bytes = plan.need();
    plan
}

/// Thinking is on by default where the model can, and refused where it can't.
fn thinking(call: &Call, model: &ModelRef) -> Result<ThinkMode, Rejection> {
    let able = model.can(Capability::Thinking);
    match call.think {
        Some(ThinkMode::On(_)) if !able && call.think_if_able => Ok(ThinkMode::Unset),
        Some(ThinkMode::On(_)) if !able => {
            Err(Rejection::bad_request(format!("\"{}\" does not support thinking", call.model)))
        }
        None | Some(ThinkMode::Unset) if able => Ok(ThinkMode::On(ThinkLevel::Medium)),
        mode => Ok(mode.unwrap_or(ThinkMode::Unset)),
    }
}

fn check_capabilities(call: &Call, model: &ModelRef, verb: &str) -> Result<(), Rejection> {
    let lacks = |capability| !model.can(capability);
    if matches!(call.body, CallBody::Embed { .. } | CallBody::Unload) {
        return Ok(());
    }
    let (mut missing, full_name) = (Vec::new(), &model.full_name);
    let loads = matches!(call.body, CallBody::Load);
    if lacks(Capability::Completion) && !loads {
        missing.push(format!("\"{}\" does not support {verb}", call.model));
    }
    match &call.body {
        CallBody::Chat { tools, .. } if !tools.is_empty() && lacks(Capability::Tools) => {
            missing.push(format!("{full_name} does not support tools"));
        }
        CallBody::Generate { suffix: Some(_), .. } | CallBody::Complete { suffix: Some(_), .. }
            if lacks(Capability::Insert) =>
        {
            missing.push(format!("{full_name} does not support insert"));
        }
        _ => {}
    }
    if missing.is_empty() { Ok(()) } else { Err(Rejection::bad_request(missing.join("\n"))) }
}
