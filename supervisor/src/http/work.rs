//! A call and its model to the work that a worker is given: the conversation, with what the model itself brings.

use ollmlx_proto::{Chat, Complete, ContentPart, Embed, Message, Role, ThinkMode, Work};

use crate::catalog::ModelRef;
use crate::dialect::{Call, CallBody};

/// The work of a call; `None` where it only loads.
pub(super) fn work(call: &Call, model: &ModelRef, think: ThinkMode) -> Option<Work> {
    let chat = |messages| Chat {
        messages,
        tools: Vec::new(),
        think,
        template: None,
        single_turn: false,
        context: Vec::new(),
        suffix: None,
        render_only: call.render_only,
    };
    let own_system = model.system.as_deref();
    Some(match &call.body {
        CallBody::Load | CallBody::Unload => return None,
        CallBody::Chat { messages, tools } => {
            let has_system = messages.first().is_some_and(|first| first.role == Role::System);
            let mut all: Vec<Message> = system(own_system.filter(|_| !has_system)).collect();
            all.extend(stored(model));
            all.extend(messages.iter().cloned());
            Work::Chat(Chat { tools: tools.clone(), ..chat(all) })
        }
        CallBody::Generate { prompt, raw: true, suffix, .. } => {
            Work::Complete(Complete { prompt: prompt.clone(), suffix: suffix.clone() })
        }
        CallBody::Generate { prompt, system: asked, template, suffix, context, images, .. } => {
            let mut all: Vec<Message> = system(asked.as_deref().or(own_system)).collect();
            if context.is_empty() {
                all.extend(stored(model));
            }
            let mut user = said(Role::User, prompt);
            user.content.extend(images.iter().cloned().map(ContentPart::Image));
            all.push(user);
            let (template, context, suffix) = (template.clone(), context.clone(), suffix.clone());
            Work::Chat(Chat { template, single_turn: true, context, suffix, ..chat(all) })
        }
        CallBody::Complete { prompt, suffix } => {
            let all = system(own_system).chain(stored(model)).chain([said(Role::User, prompt)]);
            Work::Chat(Chat { single_turn: true, suffix: suffix.clone(), ..chat(all.collect()) })
        }
        CallBody::Embed { inputs, truncate, dimensions, normalize, .. } => Work::Embed(Embed {
            inputs: inputs.clone(),
            truncate: *truncate,
            normalize: *normalize,
            dimensions: *dimensions,
        }),
    })
}

/// The system message; none where there is no text.
fn system(text: Option<&str>) -> impl Iterator<Item = Message> {
    text.filter(|text| !text.is_empty()).map(|text| said(Role::System, text)).into_iter()
}

/// The messages that belong to the model.
fn stored(model: &ModelRef) -> impl Iterator<Item = Message> + '_ {
    model.messages.iter().map(|message| {
        let role = match message.role.as_str() {
            "system" => Role::System,
            "assistant" => Role::Assistant,
            _ => Role::User,
        };
        said(role, &message.content)
    })
}

fn said(role: Role, text: &str) -> Message {
    Message {
        role,
        content: vec![ContentPart::Text(text.to_owned())],
        thinking: None,
        tool_calls: Vec::new(),
        tool_name: None,
        tool_call_id: None,
    }
}
