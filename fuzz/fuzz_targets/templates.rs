//! Any template renders a small chat to a bounded prompt or fails, in bounded time; any answer can be parsed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ollmlx_proto::{Chat, ContentPart, Message, Role, ThinkMode};
use ollmlx_worker_kit::chat::{ChatFormat, ChatSource};
use ollmlx_worker_kit::vocab::Vocab;

fuzz_target!(|input: (bool, &str, &str)| {
    let (go, template, content) = input;
    let text = Some(template.to_owned());
    let source = if go {
        ChatSource { go: text, ..ChatSource::default() }
    } else {
        ChatSource { jinja: text, ..ChatSource::default() }
    };
    let format = ChatFormat::new(&source, &Vocab::default());
    let message = Message {
        role: Role::User,
        content: vec![ContentPart::Text(content.to_owned())],
        thinking: None,
        tool_calls: Vec::new(),
        tool_name: None,
        tool_call_id: None,
    };
    let chat = Chat {
        messages: vec![message],
        tools: Vec::new(),
        think: ThinkMode::Unset,
        template: None,
        single_turn: go,
        context: Vec::new(),
        suffix: None,
        render_only: false,
    };
    if let Ok(prompt) = format.render(&chat) {
        assert!(prompt.cuts.iter().all(|cut| prompt.text.is_char_boundary(*cut)));
    }
});
