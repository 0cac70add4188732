//! Keeps the byte dumps of `PROTOCOL.md` true: every message is encoded and compared with the page.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::control::{FlashAttention, FromWorker, LoadSpec, MemoryReport, Ready, ToWorker, WorkerHello};
use crate::error::{Failure, FailureKind};
use crate::frame::{Decoder, WireMessage, encode, encode_run};
use crate::ids::{Incarnation, ModelId, RequestId, SlotId, WorkerId};
use crate::output::{
    Delta, Embeddings, FinishReason, Finished, Output, Part, Started, Timings, TokenLogprob, ToolCall, TopLogprob,
    Usage,
};
use crate::request::{
    CacheSalt, Chat, Complete, ContentPart, Embed, Format, JsonText, Limits, Logprobs, Message as Turn, PastToolCall,
    Request, ResumePoint, Role, Sampling, ThinkLevel, ThinkMode, ToolSpec, UnixSeconds, Work,
};

const MARK: &str = "## Byte dumps";

fn request(work: Work) -> Request {
    Request {
        id: RequestId(5),
        work,
        sampling: Sampling {
            seed: 42,
            seeded: true,
            temperature: 0.8,
            top_k: 40,
            top_p: 0.9,
            min_p: 0.0,
            typical_p: 1.0,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
        },
        stop: vec!["\n\n".to_owned()],
        format: Format::JsonSchema(JsonText("{}".to_owned())),
        limits: Limits { max_tokens: Some(16), context_tokens: 4096, truncate: true, shift: true, keep_tokens: 4 },
        logprobs: Some(Logprobs { top: 2 }),
        asked_at: UnixSeconds(1_700_000_000),
        cache_salt: CacheSalt(6),
        progress: ResumePoint { produced: vec![7, 300], said_after: 1, replay_exact_ms: 4000 },
    }
}

fn chat() -> Work {
    Work::Chat(Chat {
        messages: vec![Turn {
            role: Role::User,
            content: vec![ContentPart::Text("hi".to_owned()), ContentPart::Image(vec![1])],
            thinking: Some("t".to_owned()),
            tool_calls: vec![PastToolCall {
                id: Some("c1".to_owned()),
                name: "f".to_owned(),
                arguments: JsonText("{}".to_owned()),
            }],
            tool_name: Some("f".to_owned()),
            tool_call_id: None,
        }],
        tools: vec![ToolSpec { name: "f".to_owned(), definition: JsonText("{}".to_owned()) }],
        think: ThinkMode::On(ThinkLevel::High),
        template: None,
        single_turn: false,
        context: vec![1],
        suffix: None,
        render_only: false,
    })
}

fn to_worker() -> Vec<(&'static str, ToWorker)> {
    let complete = Work::Complete(Complete { prompt: "a".to_owned(), suffix: None });
    let embed = Work::Embed(Embed { inputs: vec!["a".to_owned()], truncate: true, normalize: true, dimensions: None });
    vec![
        ("ToWorker::Hello", ToWorker::Hello { version: 1, build: "b".to_owned() }),
        (
            "ToWorker::Load",
            ToWorker::Load(LoadSpec {
                weights: vec![PathBuf::from("m.gguf")],
                adapters: Vec::new(),
                go_template: None,
                slots: 4,
                context_tokens: 4096,
                batch_tokens: 512,
                threads: 0,
                gpu_layers: -1,
                kv_type: "f16".to_owned(),
                flash_attention: FlashAttention::Off,
                embedding: false,
                cpu_level: String::new(),
                memory_limit_bytes: 0,
                wired_limit_bytes: 0,
            }),
        ),
        ("ToWorker::Run, chat", ToWorker::Run(Box::new(request(chat())))),
        ("ToWorker::Run, complete", ToWorker::Run(Box::new(request(complete)))),
        ("ToWorker::Run, embed", ToWorker::Run(Box::new(request(embed)))),
        ("ToWorker::Cancel", ToWorker::Cancel(RequestId(5))),
        ("ToWorker::Drain", ToWorker::Drain),
        ("ToWorker::Trim", ToWorker::Trim),
        ("ToWorker::Pause", ToWorker::Pause(RequestId(5))),
        ("ToWorker::Continue", ToWorker::Continue(RequestId(5))),
    ]
}

fn outputs() -> Vec<(&'static str, Output)> {
    let timings = Timings { queue_ns: 1, prefill_ns: 2, decode_ns: 3 };
    let logprob =
        TokenLogprob { bytes: vec![104], logprob: -0.5, top: vec![TopLogprob { bytes: vec![104], logprob: -0.5 }] };
    vec![
        ("Started", Output::Started(Started { slot: SlotId(1), prompt_tokens: 9, cached_tokens: 4 })),
        ("Prefill", Output::Prefill { done: 5, total: 9 }),
        (
            "Delta",
            Output::Delta(Delta {
                tokens: vec![7],
                text: "h".to_owned(),
                part: Part::Thinking,
                logprobs: vec![logprob],
            }),
        ),
        (
            "ToolCall",
            Output::ToolCall(ToolCall { index: 0, name: "f".to_owned(), arguments: JsonText("{}".to_owned()) }),
        ),
        ("Embedded", Output::Embedded(Embeddings { vectors: vec![vec![1.0]], prompt_tokens: 3, timings })),
        ("Rendered", Output::Rendered("p".to_owned())),
        (
            "Finished",
            Output::Finished(Finished {
                reason: FinishReason::Length,
                stop_string: Some("\n\n".to_owned()),
                usage: Usage { prompt_tokens: 9, cached_tokens: 4, completion_tokens: 16 },
                timings,
                context: vec![1, 7],
            }),
        ),
        ("Failed", Output::Failed(Failure::new(FailureKind::EngineFailed, "x").with_detail("y"))),
    ]
}

fn from_worker() -> Vec<(String, FromWorker)> {
    let memory = MemoryReport { weights: 1000, kv: 70_000, compute: 3 };
    let mut all = vec![
        (
            "FromWorker::Hello".to_owned(),
            FromWorker::Hello(WorkerHello {
                versions: vec![1],
                build: "b".to_owned(),
                worker: WorkerId { model: ModelId("ab".to_owned()), incarnation: Incarnation(3) },
                pid: 77,
                token: [9; 32],
            }),
        ),
        ("FromWorker::LoadProgress".to_owned(), FromWorker::LoadProgress { done: 1, total: 2 }),
        (
            "FromWorker::Ready".to_owned(),
            FromWorker::Ready(Ready {
                slots: 4,
                context_tokens: 4096,
                memory,
                device: "cpu".to_owned(),
                accelerator_bytes: 0,
            }),
        ),
        ("FromWorker::LoadFailed".to_owned(), FromWorker::LoadFailed(Failure::new(FailureKind::ModelInvalid, "x"))),
        ("FromWorker::Memory".to_owned(), FromWorker::Memory(memory)),
        ("FromWorker::Progress".to_owned(), FromWorker::Progress { steps: 9 }),
        ("FromWorker::Bye".to_owned(), FromWorker::Bye),
    ];
    for (name, output) in outputs() {
        all.push((format!("FromWorker::Output, {name}"), FromWorker::Output(RequestId(5), output)));
    }
    all
}

fn dump<M: WireMessage + std::fmt::Debug + PartialEq>(page: &mut String, name: &str, message: &M) {
    let mut bytes = Vec::new();
    encode(message, &mut bytes).expect("samples are small");
    let mut decoder = Decoder::new();
    decoder.push(&bytes);
    let back: M = decoder.next_message().expect("own bytes are legal").expect("whole");
    assert_eq!(&back, message, "{name} does not survive");
    writeln!(page, "\n{name}\n```").expect("strings take everything");
    for line in bytes.chunks(32) {
        let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(page, "{}", hex.join(" ")).expect("strings take everything");
    }
    page.push_str("```\n");
}

#[test]
fn the_page_shows_the_bytes_that_are_sent() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("PROTOCOL.md");
    let page = std::fs::read_to_string(&path).expect("PROTOCOL.md lies beside the manifest");
    let dumps_at = page.find("UPDATE_PROTOCOL=1").expect("the page says how to renew it");
    let prose_end = dumps_at + page[dumps_at..].find("\n\n").expect("a blank line ends the prose") + 1;
    assert!(page[..prose_end].contains(MARK));
    let mut fresh = page[..prose_end].to_owned();
    for (name, message) in to_worker() {
        dump(&mut fresh, name, &message);
    }
    for (name, message) in from_worker() {
        dump(&mut fresh, &name, &message);
    }
    if std::env::var_os("UPDATE_PROTOCOL").is_some() {
        std::fs::write(&path, &fresh).expect("the page is writable where it is renewed");
    }
    assert!(page == fresh || std::env::var_os("UPDATE_PROTOCOL").is_some(), "the wire changed: see PROTOCOL.md");
}

#[test]
fn a_kept_request_travels_as_if_it_had_its_tokens() {
    for (name, message) in to_worker() {
        let ToWorker::Run(mut request) = message else { continue };
        for produced in [Vec::new(), vec![7, 300, 70_000]] {
            let mut borrowed = Vec::new();
            let progress = ResumePoint { produced, said_after: 3, replay_exact_ms: 1000 };
            encode_run(&request, &progress, &mut borrowed).expect("samples are small");
            request.progress = progress;
            let mut whole = Vec::new();
            encode(&ToWorker::Run(request.clone()), &mut whole).expect("samples are small");
            assert_eq!(borrowed, whole, "{name}");
        }
    }
}
