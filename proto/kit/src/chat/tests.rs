//! Rendering: families of templates in short form, rewrites, cuts, Go semantics, hostile templates.

use std::time::{Duration, Instant};

use ollmlx_proto::{ContentPart, JsonText, Message, PastToolCall, Role, ThinkLevel, ToolSpec};

use super::*;

/// Some time in 2023.
const NOW: UnixSeconds = UnixSeconds(1_700_000_000);

const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn vocab(words: &[(&str, TokenKind)]) -> Vocab {
    let mut vocab = Vocab {
        bytes: words.iter().map(|(word, _)| word.as_bytes().to_vec()).collect(),
        kinds: words.iter().map(|(_, kind)| *kind).collect(),
        bos: Some(0),
        eos: Some(1),
        ..Vocab::default()
    };
    vocab.ends.insert(1);
    vocab
}

fn small() -> Vocab {
    use TokenKind::{Control, Text, UserDefined};
    vocab(&[
        ("<s>", Control),
        ("<|im_end|>", Control),
        ("<|im_start|>", Control),
        ("<tool_call>", Control),
        ("<think>", UserDefined),
        ("</think>", UserDefined),
        ("\n\n", UserDefined),
        ("<h1>", UserDefined),
        ("a", Text),
    ])
}

fn turn(role: Role, text: &str) -> Message {
    Message {
        role,
        content: vec![ContentPart::Text(text.into())],
        thinking: None,
        tool_calls: Vec::new(),
        tool_name: None,
        tool_call_id: None,
    }
}

pub(super) fn chat(turns: &[(&str, &str)]) -> Chat {
    let role = |word: &str| match word {
        "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        other => Role::Other(other.into()),
    };
    Chat {
        messages: turns.iter().map(|(word, text)| turn(role(word), text)).collect(),
        tools: Vec::new(),
        think: ThinkMode::Unset,
        template: None,
        single_turn: false,
        context: Vec::new(),
        suffix: None,
        render_only: false,
    }
}

use ollmlx_proto::ThinkMode;

pub(super) fn jinja(template: &str) -> ChatFormat {
    ChatFormat::new(&ChatSource { jinja: Some(template.into()), ..ChatSource::default() }, &small())
}

pub(super) fn go(template: &str) -> ChatFormat {
    ChatFormat::new(&ChatSource { go: Some(template.into()), ..ChatSource::default() }, &small())
}

fn check(format: &ChatFormat, chat: &Chat, expect: &str) {
    assert_eq!(format.render(chat, NOW).map(|rendered| rendered.text).as_deref(), Ok(expect));
}

fn with_tool(mut chat: Chat) -> Chat {
    chat.tools.push(ToolSpec {
        name: "f".into(),
        definition: JsonText(
            r#"{"type":"function","function":{"name":"f","description":"It's <b>","parameters":{"type":"object","required":["z"],"properties":{"z":{"type":"string"},"a":{"type":"array","items":{"type":"integer"}}}}}}"#.into(),
        ),
    });
    chat.messages.push(Message {
        tool_calls: vec![PastToolCall {
            id: Some("c1".into()),
            name: "f".into(),
            arguments: JsonText(r#"{"z":"é","a":[1,2]}"#.into()),
        }],
        ..turn(Role::Assistant, "")
    });
    chat.messages.push(Message {
        tool_name: Some("f".into()),
        tool_call_id: Some("c1".into()),
        ..turn(Role::Tool, "ok")
    });
    chat
}

#[test]
fn a_template_says_the_date_on_which_it_was_asked_whenever_it_is_rendered() {
    let chat = chat(&[("user", "x")]);
    let day = |format: &ChatFormat, seconds| format.render(&chat, UnixSeconds(seconds)).unwrap().text;
    for format in [jinja("{{ strftime_now('%Y-%m-%d') }}"), go("{{ currentDate }}{{ .Prompt }}")] {
        let first = day(&format, NOW.0);
        assert!(first.starts_with("2023-11-1"), "{first}");
        assert_eq!(day(&format, NOW.0), first);
        assert_ne!(day(&format, NOW.0 + 2 * 24 * 3600), first, "another day, another prompt");
    }
}

#[test]
fn jinja_renders_as_python_does() {
    let hi = chat(&[("user", "hi")]);
    check(&jinja(CHATML), &hi, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    let tools = with_tool(chat(&[]));
    let dump = |expression: &str| jinja(&format!("{{{{ {expression} }}}}"));
    check(
        &dump("tools[0].function.parameters.properties | tojson"),
        &tools,
        r#"{"z": {"type": "string"}, "a": {"type": "array", "items": {"type": "integer"}}}"#,
    );
    check(&dump("tools[0].function.description | tojson"), &tools, r#""It's <b>""#);
    check(&dump("messages[0].tool_calls[0].function.arguments | tojson"), &tools, r#"{"z": "é", "a": [1, 2]}"#);
    check(
        &dump(
            "messages[0].tool_calls[0].function.arguments | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=true)",
        ),
        &tools,
        r#"{"a":[1,2],"z":"\u00e9"}"#,
    );
    check(&dump("{'a': [1]} | tojson(indent=2)"), &tools, "{\n  \"a\": [\n    1\n  ]\n}");
    check(&dump("tools is none"), &hi, "True");
    check(&dump("'prefixed'.removeprefix('pre') + ' x '.strip() + 'a,b'.split(',')[1]"), &hi, "fixedxb");
    check(&dump("enable_thinking is defined"), &hi, "False");
    check(&dump("messages[0].reasoning_content is defined"), &hi, "False");
    check(&jinja("{% generation %}x{% endgeneration %}{{ bos_token }}{{ eos_token }}"), &hi, "x<s><|im_end|>");
    let mut think = hi.clone();
    think.think = ThinkMode::On(ThinkLevel::Low);
    check(&dump("[enable_thinking, reasoning_effort]"), &think, "[True, 'low']");
}

/// The shape of Qwen 3's template: tools in the system turn, earlier thinking dropped, results grouped.
const QWEN: &str = r#"{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
    {{- "<tools>" }}{%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}{{- "\n</tools><|im_end|>\n" }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.last == messages|length - 1 and message.role == "user" and message.content is string %}{%- set ns.last = index %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}
        {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- for call in message.tool_calls %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '<tool_call>\n{"name": "' + call.name + '", "arguments": ' }}
            {%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"#;

#[test]
fn a_template_with_tools_and_thinking() {
    let format = jinja(QWEN);
    let mut chat = with_tool(chat(&[("user", "a"), ("assistant", "<think>x</think>\n\nb"), ("user", "c")]));
    chat.tools[0].definition.0 = r#"{"type":"function","function":{"name":"f"}}"#.into();
    chat.think = ThinkMode::Off;
    check(
        &format,
        &chat,
        "<|im_start|>system\n<tools>\n{\"type\": \"function\", \"function\": {\"name\": \"f\"}}\n</tools><|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"z\": \"é\", \"a\": [1, 2]}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\nok\n</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    );
    let rendered = format.render(&chat, NOW).unwrap();
    assert!(rendered.cuts.is_empty() && !rendered.thinking_open);
    let mut parser = format.parser(&chat, &rendered);
    let mut parsed = parser.push("ok\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"z\": \"y\"}}\n</tool_call>");
    parsed.extend(parser.finish());
    let call = Parsed::ToolCall { name: "f".into(), arguments: JsonText(r#"{"z":"y"}"#.into()) };
    assert_eq!(parsed, [Parsed::Content("ok".into()), call]);
    // A long conversation has fuel enough.
    let turns: Vec<_> =
        (0..2000).map(|i| if i % 2 == 0 { ("user", "some words") } else { ("assistant", "more words") }).collect();
    format.render(&super::tests::chat(&turns), NOW).unwrap();
    format.render(&super::tests::chat(&[("user", &"word ".repeat(1 << 20))]), NOW).unwrap();
}

#[test]
fn refusing_templates_get_what_they_accept() {
    let no_system = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}[{{ m.role }}:{{ m.content }}]{% endfor %}";
    check(&jinja(no_system), &chat(&[("developer", "be good"), ("user", "hi")]), "[user:be good\n\nhi]");
    let alternate = "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}[{{ m.role }}:{{ m.content }}]{% endfor %}";
    check(&jinja(alternate), &chat(&[("user", "a"), ("user", "b")]), "[user:a\n\nb]");
    check(
        &jinja(alternate),
        &chat(&[("system", "s"), ("user", "a"), ("user", "b"), ("assistant", "c")]),
        "[user:s\n\na\n\nb][assistant:c]",
    );
    let leading = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('first') }}{% endif %}[{{ m.role }}:{{ m.content }}]{% endfor %}";
    check(&jinja(leading), &chat(&[("user", "a"), ("system", "s")]), "[system:s][user:a]");
    let failure = jinja("{{ raise_exception('never') }}").render(&chat(&[("user", "x")]), NOW).unwrap_err();
    assert_eq!(failure.kind, FailureKind::InvalidRequest);
    assert!(failure.public.ends_with("never"), "{failure}");
}

#[test]
fn typed_control_tokens_are_cut() {
    let format = jinja(CHATML);
    let rendered =
        format.render(&chat(&[("user", "x <|im_end|> \n\n<h1>"), ("assistant", "<think>a</think>")]), NOW).unwrap();
    let at = rendered.text.find("<|im_end|>").unwrap();
    assert_eq!(rendered.text.matches("<|im_end|>").count(), 3);
    assert_eq!(rendered.cuts, [at + 1]);
    assert!(!rendered.text.contains('\u{e000}'));
    // Trimmed, quoted, in a role, in tools.
    let quoting =
        jinja("{{ messages[0].content | trim | tojson }}{{ messages[0].role }}{{ tools | tojson(ensure_ascii=true) }}");
    let mut chat = with_tool(chat(&[("<|im_start|>", "  <|im_start|> \u{e000}")]));
    chat.tools[0].definition.0 = chat.tools[0].definition.0.replace("It's", "<|im_end|>");
    let rendered = quoting.render(&chat, NOW).unwrap();
    assert_eq!(rendered.text.matches('\u{e000}').count(), 1, "the client's own stays");
    let starts: Vec<_> = rendered.text.match_indices("<|im_").map(|(at, _)| at + 1).collect();
    assert_eq!(rendered.cuts, starts);
    assert_eq!(starts.len(), 3);
    // Overlapping spellings.
    let vocab = vocab(&[("<<|", TokenKind::Control), ("<|x|>", TokenKind::Control)]);
    let source = ChatSource { jinja: Some("{{ messages[0].content }}".into()), ..ChatSource::default() };
    let rendered = ChatFormat::new(&source, &vocab).render(&super::tests::chat(&[("user", "<<|x|>")]), NOW).unwrap();
    assert_eq!(rendered.cuts, [1, 2]);
}

#[test]
fn many_spellings_and_long_texts_stay_fast() {
    let words: Vec<String> = (0..10_000).map(|i| format!("<unused{i}>")).collect();
    let words: Vec<_> = words.iter().map(|word| (word.as_str(), TokenKind::Control)).collect();
    let format = ChatFormat::new(&ChatSource { jinja: Some(CHATML.into()), ..ChatSource::default() }, &vocab(&words));
    let began = Instant::now();
    let rendered = format.render(&chat(&[("user", &"<unused99<unused1>".repeat(60_000))]), NOW).unwrap();
    assert_eq!(rendered.cuts.len(), 60_000);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn beginning_and_thinking_are_told() {
    let mut vocab = small();
    vocab.add_bos = true;
    let render = |template: &str| {
        let source = ChatSource { jinja: Some(template.into()), ..ChatSource::default() };
        let rendered = ChatFormat::new(&source, &vocab).render(&chat(&[("user", "x")]), NOW).unwrap();
        (rendered.add_special, rendered.thinking_open)
    };
    assert_eq!(render("{{ bos_token }}x"), (false, false));
    assert_eq!(render("x"), (true, false));
    assert_eq!(render("x</think>y<think>\n"), (true, true));
}

#[test]
fn images_are_refused() {
    let mut chat = chat(&[("user", "x")]);
    chat.messages[0].content.push(ContentPart::Image(vec![1]));
    let failure = jinja(CHATML).render(&chat, NOW).unwrap_err();
    assert_eq!(
        (failure.kind, failure.public.as_str()),
        (FailureKind::Unsupported, "this model does not support image input")
    );
}

#[test]
fn go_templates_with_messages() {
    let template = "{{- range $i, $_ := .Messages }}{{- $last := eq (len (slice $.Messages $i)) 1 }}<{{ .Role }}>{{ .Content }}{{ range .ToolCalls }}{\"name\": \"{{ .Function.Name }}\", \"arguments\": {{ .Function.Arguments }}}{{ end }}{{ if $last }}<assistant>{{ end }}{{- end }}";
    check(&go(template), &chat(&[("user", "a"), ("user", "b")]), "<user>a\n\nb<assistant>");
    check(
        &go(template),
        &with_tool(chat(&[("user", "a")])),
        "<user>a<assistant>{\"name\": \"f\", \"arguments\": {\"z\":\"é\",\"a\":[1,2]}}<tool>ok<assistant>",
    );
    let tools = with_tool(chat(&[]));
    check(
        &go("{{ range .Tools }}{{ json . }}{{ end }}{{ if .Messages }}{{ end }}"),
        &tools,
        &tools.tools[0].definition.0.clone(),
    );
    check(&go("{{ .Tools }}{{ if .Messages }}{{ end }}"), &tools, &format!("[{}]", tools.tools[0].definition.0));
    check(
        &go(
            "{{ range .Tools }}{{ .Function.Name }}({{ range $k, $v := .Function.Parameters.Properties }}{{ $k }}: {{ toTypeScriptType $v }},{{ end }}){{ end }}{{ if .Messages }}{{ end }}",
        ),
        &tools,
        "f(a: number[],z: string,)",
    );
    check(
        &go("{{ if .Messages }}{{ .System }}|{{ .Think }}{{ .ThinkLevel }}{{ .IsThinkSet }}{{ .Missing }}{{ end }}"),
        &chat(&[("system", "s"), ("user", "x"), ("system", "t")]),
        "s\n\nt|falsefalse",
    );
}

#[test]
fn go_templates_of_one_turn() {
    let template =
        "{{ if .System }}<s>{{ .System }}{{ end }}{{ if .Prompt }}<u>{{ .Prompt }}{{ end }}<a>{{ .Response }}<e>";
    check(
        &go(template),
        &chat(&[("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]),
        "<s>s<u>a<a>b<e><u>c<a>",
    );
    check(&go(template), &chat(&[("user", "a"), ("assistant", "b")]), "<u>a<a>b");
    check(&go("{{ .Prompt }}!"), &chat(&[("user", "a")]), "a!");
    let mut replaced = chat(&[("user", "a")]);
    replaced.template = Some("[{{ .Prompt }}]".into());
    check(&jinja(CHATML), &replaced, "[a]");
}

#[test]
fn suffixes() {
    let mut chat = chat(&[("user", "a<|im_end|>")]);
    chat.suffix = Some("b".into());
    check(&go("<P>{{ .Prompt }}<S>{{ .Suffix }}<M>"), &chat, "<P>a<|im_end|><S>b<M>");
    let mut with_markers = small();
    assert_eq!(jinja(CHATML).render(&chat, NOW).unwrap_err().kind, FailureKind::Unsupported);
    with_markers.infill = Some((2, 1, 3));
    let rendered = jinja(CHATML).render_suffix("a<|im_end|>", "b", &with_markers).unwrap();
    assert_eq!(rendered.text, "<|im_start|>a<|im_end|><|im_end|>b<tool_call>");
    assert_eq!(rendered.cuts, ["<|im_start|>a<".len()]);
}

#[test]
fn models_without_a_template_get_one() {
    let render = |architecture: &str, words: &[(&str, TokenKind)]| {
        let source = ChatSource { architecture: architecture.into(), ..ChatSource::default() };
        ChatFormat::new(&source, &vocab(words))
            .render(&chat(&[("system", "s"), ("user", " a "), ("assistant", "b"), ("user", "c")]), NOW)
            .unwrap()
            .text
    };
    use TokenKind::Control;
    let gemma = "<bos><start_of_turn>user\ns\n\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n<start_of_turn>user\nc<end_of_turn>\n<start_of_turn>model\n";
    assert_eq!(render("gemma3", &[("<bos>", Control), ("<eos>", Control), ("<start_of_turn>", Control)]), gemma);
    assert_eq!(
        render("llama", &[("<b>", Control), ("<e>", Control), ("<|start_header_id|>", Control)]),
        "<b><|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nb<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nc<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    assert_eq!(
        render("llama", &[("<b>", Control), ("<e>", Control), ("<|im_start|>", Control)]),
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(
        render("mistral", &[("<s>", Control), ("</s>", Control)]),
        "<s>[INST] s\n\n a  [/INST] b</s>[INST] c [/INST]"
    );
    assert_eq!(
        render("phi3", &[("<s>", Control), ("</s>", Control), ("<|assistant|>", Control), ("<|end|>", Control)]),
        "<|system|>\ns<|end|>\n<|user|>\n a <|end|>\n<|assistant|>\nb<|end|>\n<|user|>\nc<|end|>\n<|assistant|>\n"
    );
    assert_eq!(render("gpt2", &[("<s>", Control), ("</s>", Control)]), "s\n a \nb\nc");
}

#[test]
fn hostile_jinja_fails_soon() {
    let nested = "{% for a in range(999) %}{% for b in range(999) %}{% for c in range(999) %}{% endfor %}{% endfor %}{% endfor %}";
    let doubling =
        format!("{{% set ns = namespace(s='aaaaaaaa') %}}{}{{{{ ns.s }}}}", "{% set ns.s = ns.s + ns.s %}".repeat(60));
    let replace =
        format!("{{% set s = 'aaaaaaaa' %}}{}{{{{ s }}}}", "{% set s = s.replace('a', 'aaaaaaaa') %}".repeat(40));
    let cases = [
        nested,
        "{{ 'a' * 10**9 }}",
        "{{ ('a' * 10**8) ~ ('b' * 10**8) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% for x in range(10**9) %}x{% endfor %}",
        "{% for x in [0] * 10**9 %}x{% endfor %}",
        "{% for x in range(9999) %}{{ messages | tojson | tojson | tojson | tojson | tojson }}{% for y in range(999) %}{% endfor %}{% endfor %}",
        &doubling,
        &replace,
        &"{".repeat(20 << 20),
        &"{{ x }}".repeat(1 << 18),
        &format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000)),
        &format!("{{{{ {}1 }}}}", "not ".repeat(100_000)),
        &format!("{{{{ {}1 }}}}", "-".repeat(100_000)),
        &format!("{{{{ x{} }}}}", "|e".repeat(100_000)),
        &format!("{{{{ 1{} }}}}", "+1".repeat(100_000)),
        &format!("{{% if x %}}{}{{% endif %}}", "{% elif x %}".repeat(50_000)),
        &format!("{{% raw %}}{{{{ ' {{% endraw %}}{{{{ {}1 }}}}", "not ".repeat(100_000)),
        "{% set ns = namespace(s=0) %}{% for i in range(9999) %}{% for j in range(9999) %}{% set ns.s = [ns.s] %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s=0) %}{% for i in range(9999) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s | tojson }}",
        "{% set ns = namespace(s=0) %}{% for i in range(9999) %}{% for j in range(9999) %}{% set ns.s = [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[ns.s]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]] %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s=0) %}{% for i in range(9999) %}{% for j in range(9999) %}{% set ns.s = {'a': {'a': {'a': {'a': ns.s}}}} %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s=0) %}{% for i in range(9999) %}{% set ns.s = [[[[[[[[[[[[[[[[[[[[ns.s]]]]]]]]]]]]]]]]]]]] %}{% endfor %}{{ ns.s }}{{ ns.s == [ns.s] }}{% include 'x' %}",
        "{% include '/etc/passwd' %}",
        "{% import 'x' as y %}",
        "{% extends 'x' %}",
        "{{ ''.__class__.__mro__[1] }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ lookup() }}",
        "{{ strftime_now('%Q') }}",
        "{{ x.y.z }}",
        "{% if %}",
    ];
    for template in cases {
        let began = Instant::now();
        let result = jinja(template).render(&chat(&[("user", "<|im_end|>\"\\")]), NOW);
        let head: String = template.chars().take(60).collect();
        assert!(began.elapsed() < Duration::from_secs(2), "{head}: {:?}", began.elapsed());
        assert_eq!(result.map_err(|failure| failure.kind).err(), Some(FailureKind::TemplateFailed), "{head}");
    }
}

#[test]
fn deep_but_legal_jinja_is_no_overflow() {
    let half = limits::TEMPLATE_EXPRESSION_CHARS_MAX / 3;
    for template in [
        format!("{{{{ {}1 }}}}", "-".repeat(2 * half)),
        format!("{{{{ {}1 }}}}", "not ".repeat(half)),
        format!("{{{{ x{} }}}}", "|e".repeat(half)),
        format!("{{{{ 1{} }}}}", "+1".repeat(half)),
        format!("{{{{ x{} }}}}", ".x".repeat(half)),
        format!("{{{{ {}1 }}}}", "1 if 1 else ".repeat(half / 3)),
        format!("{{% if x %}}{}{{% endif %}}", "{% elif x %}".repeat(limits::TEMPLATE_BRANCHES_MAX)),
        "{% set ns = namespace(s=0) %}{% for i in range(9999) %}{% for j in range(20) %}{% set ns.s = [ns.s] %}{% endfor %}{% endfor %}".into(),
        "{% set ns = namespace(s=0) %}{% for i in range(9999) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s }}".into(),
        "{% set ns = namespace(s=0, t=0) %}{% for i in range(9999) %}{% set ns.s = [ns.s] %}{% set ns.t = [ns.t] %}{% endfor %}{{ ns.s == ns.t }}".into(),
    ] {
        let began = Instant::now();
        let head: String = template.chars().take(40).collect();
        match jinja(&template).render(&chat(&[("user", "x")]), NOW) {
            Ok(_) => {}
            Err(failure) => assert_eq!(failure.kind, FailureKind::TemplateFailed, "{head}"),
        }
        assert!(began.elapsed() < Duration::from_secs(2), "{head}: {:?}", began.elapsed());
    }
}

#[test]
fn hostile_go_fails_soon() {
    let m = "{{ if .Messages }}{{ end }}";
    let doubling = format!("{m}{{{{ $a := \"aaaaaaaa\" }}}}{}", "{{ $a = printf \"%s%s\" $a $a }}".repeat(60));
    let chain: String = (0..60)
        .map(|i| {
            format!(
                "{{{{ define \"t{i}\" }}}}{{{{ template \"t{}\" . }}}}{{{{ template \"t{}\" . }}}}{{{{ end }}}}",
                i + 1,
                i + 1
            )
        })
        .collect();
    let ranges = format!(
        "{m}{}",
        "{{ range .Messages }}{{ range $.Messages }}{{ range $.Messages }}{{ range $.Messages }}{{ range $.Messages }}x{{ end }}{{ end }}{{ end }}{{ end }}{{ end }}"
    );
    let cases = [
        format!(
            "{m}{{{{ define \"x\" }}}}{{{{ template \"x\" . }}}}{{{{ template \"x\" . }}}}{{{{ end }}}}{{{{ template \"x\" . }}}}"
        ),
        format!("{m}{chain}{{{{ define \"t60\" }}}}{{{{ end }}}}{{{{ template \"t0\" . }}}}"),
        doubling,
        ranges,
        format!("{m}{{{{ call .X }}}}"),
        format!("{m}{{{{ printf \"%1000000000d\" 1 }}}}"),
        format!("{m}{{{{ \"x\" | js | js }}}}"),
        format!("{m}{{{{ range 1000000000 }}}}x{{{{ end }}}}"),
        format!("{m}{}", "(".repeat(20 << 20)),
        format!("{m}{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000)),
        format!("{m}{}{}", "{{ if true }}".repeat(10_000), "{{ end }}".repeat(10_000)),
        format!("{m}{{{{ .A"),
        format!("{m}{{{{ unknown .A }}}}"),
    ];
    let turns: Vec<_> = (0..200).map(|i| if i % 2 == 0 { ("user", "a") } else { ("assistant", "b") }).collect();
    for template in cases {
        let began = Instant::now();
        let result = go(&template).render(&chat(&turns), NOW);
        let head: String = template.chars().skip(27).take(60).collect();
        assert!(began.elapsed() < Duration::from_secs(2), "{head}: {:?}", began.elapsed());
        assert_eq!(result.map_err(|failure| failure.kind).err(), Some(FailureKind::TemplateFailed), "{head}");
    }
}

#[test]
fn markers_that_are_control_tokens_are_visible() {
    let format = jinja("{{ tools }}<tool_call>");
    assert_eq!(format.visible_controls().iter().copied().collect::<Vec<_>>(), [3]);
    let chat = with_tool(chat(&[("user", "x")]));
    let rendered = format.render(&chat, NOW).unwrap();
    assert_eq!(format.parser(&chat, &rendered).visible_controls().len(), 1);
    assert!(OutputParser::passthrough().visible_controls().is_empty());
}

#[test]
fn capabilities_of_templates() {
    use Capability::{Insert, Thinking, Tools};
    let check = |jinja: Option<&str>, go: Option<&str>, expect: &[Capability]| {
        assert_eq!(template_capabilities(jinja, go), expect)
    };
    check(None, None, &[]);
    check(Some(CHATML), None, &[]);
    check(Some("{% if tools %}{% endif %}{{ my_tools_x }}"), None, &[Tools]);
    check(Some("{% if enable_thinking %}"), None, &[Thinking]);
    check(None, Some("{{ .Suffix }}{{ .Tools }}<think>{{ .Thinking }}</think>"), &[Tools, Insert, Thinking]);
}
