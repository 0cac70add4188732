//! A call and its model to the work that a worker is given: the conversation, with what the model itself brings.

use ollmlx_proto::{Chat, Complete, ContentPart, Embed, Message, Role, ThinkMode, Work};

use crate::catalog::ModelRef;
use crate::dialect::{Call, CallBody};

/// Takes the work out of a call; `None` where it only loads. Texts are moved, since there may be many megabytes of them.
pub(super) fn take_work(call: &mut Call, model: &ModelRef, think: ThinkMode) -> Option<Work> {
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
    Some(match std::mem::replace(&mut call.body, CallBody::Load) {
        CallBody::Load | CallBody::Unload => return None,
        CallBody::Chat { mut messages, tools } => {
            let has_system = messages.first().is_some_and(|first| first.role == Role::System);
            let own = own_system.filter(|text| !has_system && !text.is_empty());
            let before: Vec<Message> = own.map(own_message).into_iter().chain(stored(model)).collect();
            messages.splice(0..0, before);
            Work::Chat(Chat { tools, ..chat(messages) })
        }
        CallBody::Generate { prompt, raw: true, suffix, .. } => Work::Complete(Complete { prompt, suffix }),
        CallBody::Generate { prompt, system: asked, template, suffix, context, images, .. } => {
            let system = asked.or_else(|| own_system.map(str::to_owned)).filter(|text| !text.is_empty());
            let mut all: Vec<Message> = system.map(|text| said(Role::System, text)).into_iter().collect();
            if context.is_empty() {
                all.extend(stored(model));
            }
            let mut user = said(Role::User, prompt);
            user.content.extend(images.into_iter().map(ContentPart::Image));
            all.push(user);
            Work::Chat(Chat { template, single_turn: true, context, suffix, ..chat(all) })
        }
        CallBody::Complete { prompt, suffix } => {
            let own = own_system.filter(|text| !text.is_empty()).map(own_message);
            let all = own.into_iter().chain(stored(model)).chain([said(Role::User, prompt)]);
            Work::Chat(Chat { single_turn: true, suffix, ..chat(all.collect()) })
        }
        CallBody::Embed { inputs, truncate, dimensions, normalize, .. } => {
            Work::Embed(Embed { inputs, truncate, normalize, dimensions })
        }
    })
}

/// The system message of the model.
fn own_message(text: &str) -> Message {
    said(Role::System, text.to_owned())
}

/// The messages that belong to the model.
fn stored(model: &ModelRef) -> impl Iterator<Item = Message> + '_ {
    model.messages.iter().map(|message| {
        let role = match message.role.as_str() {
            "system" => Role::System,
            "assistant" => Role::Assistant,
            _ => Role::User,
        };
        said(role, message.content.clone())
    })
}

fn said(role: Role, text: String) -> Message {
    Message {
        role,
        content: vec![ContentPart::Text(text)],
        thinking: None,
        tool_calls: Vec::new(),
        tool_name: None,
        tool_call_id: None,
    }
}
