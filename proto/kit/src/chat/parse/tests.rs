//! One table of answers per family, then the promises that hold for any text.

use ollmlx_proto::{Chat, JsonText, ThinkLevel, ThinkMode, ToolSpec};

use super::{OutputParser, Parsed, detect};
use crate::vocab::Vocab;

fn chat(tools: &[&str]) -> Chat {
    let tool = |name: &&str| ToolSpec {
        name: (*name).into(),
        definition: JsonText(format!(
            r#"{{"type":"function","function":{{"name":"{name}","parameters":{{"type":"object","properties":{{"city":{{"type":"string"}},"days":{{"type":"integer"}},"flag":{{"type":["boolean","null"]}}}}}}}}}}"#
        )),
    };
    Chat {
        messages: Vec::new(),
        tools: tools.iter().map(tool).collect(),
        think: ThinkMode::On(ThinkLevel::Medium),
        template: None,
        single_turn: false,
        context: Vec::new(),
        suffix: None,
        render_only: false,
    }
}

fn parser(template: &str, open: bool) -> OutputParser {
    OutputParser::new(&detect(template, &Vocab::default()), &chat(&["f", "g"]), open)
}

/// Pieces as short text: `c:` content, `t:` thinking, `f(…)` a call.
fn show(parsed: &[Parsed]) -> String {
    let mut out = String::new();
    let mut last = ' ';
    for piece in parsed {
        let (kind, text) = match piece {
            Parsed::Content(text) => ('c', text.clone()),
            Parsed::Thinking(text) => ('t', text.clone()),
            Parsed::ToolCall { name, arguments } => ('f', format!("{name}{}", arguments.0)),
        };
        if kind != last || kind == 'f' {
            out.push_str(&format!("|{kind}:"));
        }
        out.push_str(&text);
        last = kind;
    }
    out
}

fn run(mut parser: OutputParser, pieces: impl Iterator<Item = String>) -> String {
    let mut out: Vec<Parsed> = pieces.flat_map(|piece| parser.push(&piece)).collect();
    out.extend(parser.finish());
    show(&out)
}

/// However the text is split, the result is the same.
fn check_with(template: &str, open: bool, text: &str, expect: &str) {
    assert_eq!(run(parser(template, open), std::iter::once(text.to_owned())), expect, "whole: {text}");
    assert_eq!(run(parser(template, open), text.chars().map(String::from)), expect, "by character: {text}");
    for width in [2, 3, 7] {
        let characters: Vec<char> = text.chars().collect();
        let pieces = characters.chunks(width).map(|chunk| chunk.iter().collect());
        assert_eq!(run(parser(template, open), pieces), expect, "by {width}: {text}");
    }
}

fn check(template: &str, text: &str, expect: &str) {
    check_with(template, false, text, expect);
}

#[test]
fn thinking_is_split_off() {
    let qwen = "{% if '</think>' in content %}";
    check(qwen, "<think>\nhm\n</think>\n\nHi there\n", "|t:hm|c:Hi there\n");
    check(qwen, "\n <think>a", "|t:a");
    check(qwen, "no <think>tag</think>", "|c:no <think>tag</think>");
    check(qwen, "<thin", "|c:<thin");
    check(qwen, "<think>a </thi", "|t:a </thi");
    check_with(qwen, true, "\nhm</think>\nHi", "|t:hm|c:Hi");
    check("[THINK]", "[THINK]x[/THINK]y", "|t:x|c:y");
    check("<|channel>thought\n<|tool_call>", "<|channel>thought\nhm\n<channel|>Hi", "|t:hm|c:Hi");
}

#[test]
fn thinking_stays_text_where_it_is_off() {
    let detected = detect("</think>", &Vocab::default());
    let mut chat = chat(&[]);
    chat.think = ThinkMode::Off;
    let text = "<think>a</think>b";
    assert_eq!(run(OutputParser::new(&detected, &chat, false), std::iter::once(text.into())), format!("|c:{text}"));
    let open = OutputParser::new(&detected, &chat, true);
    assert!(open.in_thinking());
    assert_eq!(run(open, std::iter::once("a</think>b".into())), "|t:a|c:b");
}

#[test]
fn hermes_and_qwen() {
    let template = "<tool_call>{{ tool_call.name }} </think>";
    let one = r#"<tool_call>
{"name": "f", "arguments": {"city": "Oslo"}}
</tool_call>"#;
    check(template, one, r#"|f:f{"city":"Oslo"}"#);
    check(template, &format!("Sure.\n\n{one}\n{one}\n"), r#"|c:Sure.|f:f{"city":"Oslo"}|f:f{"city":"Oslo"}"#);
    check(template, &format!("<think>x</think>\n{one}"), r#"|t:x|f:f{"city":"Oslo"}"#);
    check(
        template,
        r#"<tool_call>{"name":"f","arguments":{"city":"a</tool_call>b"}}</tool_call>"#,
        r#"|f:f{"city":"a</tool_call>b"}"#,
    );
    check(template, r#"<tool_call>{"name":"f","arguments":"{\"days\":1}"}"#, r#"|f:f{"days":1}"#);
    check(template, "a <tool_call>{oops}</tool_call> b", "|c:a <tool_call>{oops}</tool_call> b");
    check(template, r#"a <tool_call>{"name": "f", "argum"#, r#"|c:a <tool_call>{"name": "f", "argum"#);
}

#[test]
fn qwen_coder_and_glm() {
    let coder = "<tool_call>\n<function=";
    check(
        coder,
        "<tool_call>\n<function=f>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
        r#"|f:f{"city":"Oslo","days":3}"#,
    );
    check(coder, "<tool_call>\n<function=g>\n</function>\n</tool_call>", "|f:g{}");
    check(
        coder,
        "<tool_call><function=f><parameter=city>\n12\n</parameter><parameter=flag>true</parameter></function></tool_call>",
        r#"|f:f{"city":"12","flag":true}"#,
    );
    let glm = "<arg_key>";
    check(
        glm,
        "<tool_call>f\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>",
        r#"|f:f{"city":"Oslo","days":2}"#,
    );
    check(glm, "<tool_call>g</tool_call>", "|f:g{}");
}

#[test]
fn llama() {
    let template = "<|start_header_id|> tools <|python_tag|>";
    check(template, r#"{"name": "f", "parameters": {"city": "x"}}"#, r#"|f:f{"city":"x"}"#);
    check(template, r#"{"name":"f","parameters":{}}; {"name":"g","parameters":{}}"#, "|f:f{}|f:g{}");
    check(template, r#"<|python_tag|>{"name": "f", "parameters": {}}"#, "|f:f{}");
    check(template, r#"<|python_tag|>f.call(city="x")"#, r#"|f:f{"city":"x"}"#);
    check(template, r#"{"name": "unknown", "parameters": {}} x"#, r#"|c:{"name": "unknown", "parameters": {}} x"#);
    check(template, r#"Here: {"name": "f", "parameters": {}}"#, r#"|c:Here: {"name": "f", "parameters": {}}"#);
    check(template, r#"{"answer": 1}"#, r#"|c:{"answer": 1}"#);
    let four = "<|python_start|>";
    check(four, r#"[f(city="a, b", days=2), g()]"#, r#"|f:f{"city":"a, b","days":2}|f:g{}"#);
    check(four, "[1] is a note", "|c:[1] is a note");
}

#[test]
fn mistral() {
    let template = "[TOOL_CALLS]";
    check(
        template,
        r#"[TOOL_CALLS][{"name":"f","arguments":{"city":"]"}},{"name":"g","arguments":{}}]"#,
        r#"|f:f{"city":"]"}|f:g{}"#,
    );
    check(
        template,
        r#"ok [TOOL_CALLS]f[ARGS]{"days":1}[TOOL_CALLS]g[CALL_ID]ab1[ARGS]{}"#,
        r#"|c:ok|f:f{"days":1}|f:g{}"#,
    );
    check(template, "[TOOL_CALLS]nothing", "|c:[TOOL_CALLS]nothing");
}

#[test]
fn gemma_and_lfm() {
    check(
        "<|tool_call>",
        r#"<|tool_call>call:f{city:<|"|>Os,lo<|"|>,days:3,flag:true}<tool_call|>"#,
        r#"|f:f{"city":"Os,lo","days":3,"flag":true}"#,
    );
    check(
        "<start_function_call>",
        "<start_function_call>call:f{city:<escape>Oslo<escape>,more:{a:[1,2]}}<end_function_call>",
        r#"|f:f{"city":"Oslo","more":{"a":[1,2]}}"#,
    );
    check(
        "<|tool_call_start|>",
        r#"<|tool_call_start|>[f(city='it\'s', flag=None)]<|tool_call_end|>done"#,
        r#"|f:f{"city":"it's","flag":null}|c:done"#,
    );
}

#[test]
fn deepseek_kimi_minimax() {
    check(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"days\":1}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        r#"|f:f{"days":1}|f:g{}"#,
    );
    check(
        "DSML dsml_token",
        "<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"city\" string=\"true\">12</｜DSML｜parameter>\n<｜DSML｜parameter name=\"days\" string=\"false\">12</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        r#"|f:f{"city":"12","days":12}"#,
    );
    check(
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{\"days\":1}<|tool_call_end|><|tool_calls_section_end|>",
        r#"|f:f{"days":1}"#,
    );
    check(
        "<minimax:tool_call>",
        "<minimax:tool_call>\n<invoke name=\"f\">\n<parameter name=\"city\">Oslo</parameter>\n<parameter name=\"days\">1</parameter>\n</invoke>\n</minimax:tool_call>",
        r#"|f:f{"city":"Oslo","days":1}"#,
    );
    check(
        "<function name=\"<param name=\"",
        "<function name=\"f\"><param name=\"city\">x</param></function>",
        r#"|f:f{"city":"x"}"#,
    );
}

#[test]
fn granite_phi_cohere() {
    let array = r#"[{"name":"f","arguments":{}}]"#;
    check("<|tool_call|>", &format!("<|tool_call|>{array}"), "|f:f{}");
    check("<|tool_call|>", &format!("<|tool_call|>{array}<|/tool_call|> x"), "|f:f{}|c:x");
    check("<|START_ACTION|>", r#"<|START_ACTION|>[{"tool_name":"g","parameters":{}}]<|END_ACTION|>"#, "|f:g{}");
}

#[test]
fn harmony() {
    let template = "<|channel|>{{ x }}<|message|>";
    check(
        template,
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>",
        "|t:hm|c:Hi",
    );
    check(
        template,
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"days\":1}<|call|>",
        r#"|t:hm|f:f{"days":1}"#,
    );
    check(template, "<|start|>assistant to=functions.g<|channel|>commentary<|message|>{}", "|f:g{}");
    check(
        template,
        "<|channel|>commentary to=f<|message|>{oops<|call|>",
        "|c:<|channel|>commentary to=f<|message|>{oops",
    );
    check(template, "plain text", "|c:plain text");
    check(template, "<|channel|>final<|message|>a<b", "|c:a<b");
    check(template, "<|channel|>ana", "");
}

#[test]
fn calls_need_tools_and_turns() {
    let text = r#"<tool_call>{"name":"f","arguments":{}}</tool_call>"#;
    let detected = detect("<tool_call>", &Vocab::default());
    for (tools, single_turn) in [(&[][..], false), (&["f"][..], true)] {
        let chat = Chat { single_turn, ..chat(tools) };
        assert_eq!(run(OutputParser::new(&detected, &chat, false), std::iter::once(text.into())), format!("|c:{text}"));
    }
}

/// A small generator, so that the property tests repeat.
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

const TEMPLATES: [&str; 14] = [
    "<tool_call> </think>",
    "<arg_key>",
    "<|start_header_id|> tools <|python_tag|>",
    "<|python_start|>",
    "[TOOL_CALLS] [THINK]",
    "<|tool_call> <channel|>",
    "<start_function_call>",
    "<|tool_call_start|>",
    "<｜tool▁calls▁begin｜> </think>",
    "<|tool_calls_section_begin|>",
    "<minimax:tool_call> <think>",
    "<|tool_call|>",
    "<|channel|><|message|>",
    "tools </think>",
];

const BITS: [&str; 40] = [
    "a",
    " ",
    "\n",
    "é",
    "<",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    ":",
    ",",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<arg_key>",
    "</arg_key>",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[THINK]",
    "[/THINK]",
    "<|tool_call>",
    "<tool_call|>",
    "<|channel>thought\n",
    "<channel|>",
    "<start_function_call>",
    "<|tool_call|>",
    "<|/tool_call|>",
    "{\"name\":\"f\",\"arguments\":{}}",
    "f(x=1)",
    "<|channel|>",
    "<|message|>",
    "<|end|>",
    "analysis",
    "to=f",
    "<|tool_call_start|>",
    "                ",
];

#[test]
fn splitting_never_matters() {
    let mut draws = Draws(7);
    for round in 0..6000 {
        let text: String = (0..1 + draws.below(14)).map(|_| BITS[draws.below(BITS.len())]).collect();
        let template = TEMPLATES[round % TEMPLATES.len()];
        let open = draws.below(4) == 0;
        let whole = run(parser(template, open), std::iter::once(text.clone()));
        let mut pieces = Vec::new();
        let mut piece = String::new();
        for character in text.chars() {
            piece.push(character);
            if draws.below(3) == 0 {
                pieces.push(std::mem::take(&mut piece));
            }
        }
        pieces.push(piece);
        assert_eq!(run(parser(template, open), pieces.into_iter()), whole, "{template:?} {text:?}");
    }
}

#[test]
fn long_runs_of_space_split_alike() {
    for length in [1020, 1024, 1025, 3000] {
        let space = " ".repeat(length);
        let call = r#"<tool_call>{"name":"f","arguments":{}}</tool_call>"#;
        let text = format!("a{space}{call}b{space}c{space}");
        let whole = run(parser("<tool_call>", false), std::iter::once(text.clone()));
        assert_eq!(run(parser("<tool_call>", false), text.chars().map(String::from)), whole, "{length}");
        assert_eq!(whole.starts_with("|c:a|f"), length <= 1024, "{length}");
    }
}

#[test]
fn text_without_markers_comes_out_unchanged() {
    let mut draws = Draws(3);
    let plain: Vec<&str> = BITS.iter().copied().filter(|bit| bit.chars().count() == 1).collect();
    for round in 0..3000 {
        // No bare call can begin after a letter.
        let text: String = (0..40).map(|_| plain[draws.below(plain.len())]).collect();
        let text = format!("x{text}");
        let template = TEMPLATES[round % TEMPLATES.len()];
        assert_eq!(run(parser(template, false), text.chars().map(String::from)), format!("|c:{text}"), "{template}");
    }
}

#[test]
fn malformed_calls_lose_nothing() {
    for template in TEMPLATES.iter().filter(|template| !template.contains("<|channel|>")) {
        for opener in [
            "<tool_call>",
            "[TOOL_CALLS]",
            "<|tool_call>",
            "<minimax:tool_call>",
            "<|tool_call|>",
            "<|tool_call_start|>",
        ] {
            let text = format!("x  {opener} ] not a call </tool_call> y");
            assert_eq!(
                run(parser(template, false), text.chars().map(String::from)),
                format!("|c:{text}"),
                "{template}"
            );
        }
    }
}

#[test]
fn an_endless_call_becomes_content() {
    let text = format!("<tool_call>{{\"a\":\"{}", "x".repeat(crate::limits::TOOL_CALL_BYTES_MAX + 100));
    let mut by_piece = parser("<tool_call>", false);
    let mut out = Vec::new();
    for start in (0..text.len()).step_by(997) {
        out.extend(by_piece.push(&text[start..text.len().min(start + 997)]));
    }
    assert!(!out.is_empty(), "released before the end");
    out.extend(by_piece.finish());
    assert_eq!(show(&out), format!("|c:{text}"));
}
