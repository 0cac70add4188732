//! Bounds of tokenizers from files: published kinds make of a text what the library makes of it, hostile ones are refused
//! or come to an end.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::time::{Duration, Instant};

use ollmlx_proto::Failure;
use ollmlx_worker_mlx::limits::{
    ADDED_TOKENS_MAX, CHARSMAP_PIECE_BYTES_MAX, JSON_VALUES_MAX, MARKERS_MAX, REPLACEMENT_BYTES_MAX, STEPS_MAX,
    UNIGRAM_PIECE_BYTES_MAX, WORD_AFFIX_BYTES_MAX, WORD_LETTERS_MAX,
};
use ollmlx_worker_mlx::tokenizer::Tokenizer;
use serde_json::{Value, json};

const LLAMA3: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const TEXTS: [&str; 8] = [
    "",
    "Hello,  world! It's 12345 o'clock.\n\n  I'd say\tso \r\n",
    "漢字とかな、Über 😀 e\u{301} ﷺ İ",
    "<s>a<|end|> b <|end|>",
    "▁under▁ <0x0A> ##word",
    "   ",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "(( [[ {{ ''s '' `` -- \u{3000} \u{a0} end",
];

/// A byte-level vocabulary with some merges, and a control token.
fn tokenizer(change: impl FnOnce(&mut Value)) -> Value {
    // GPT-2's letters for bytes.
    let is_plain = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let letters = (0..=0xff).filter(is_plain).chain(0x100..0x144).filter_map(char::from_u32);
    let mut vocab: serde_json::Map<String, Value> =
        letters.enumerate().map(|(id, letter)| (letter.to_string(), json!(id))).collect();
    for (id, token) in ["aa", "aaaa", "he", "ll", "Ġw", "▁", "<0x41>"].into_iter().enumerate() {
        vocab.insert(token.to_owned(), json!(256 + id));
    }
    let mut tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added("<s>"), added("<|end|>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": ["a a", "aa aa", "h e", "l l", "Ġ w"]},
    });
    change(&mut tokenizer);
    tokenizer
}

fn read(file: &[u8]) -> Result<Tokenizer, Failure> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), file).unwrap();
    Tokenizer::load(folder.path(), 512, false)
}

fn added(content: &str) -> Value {
    json!({"id": 0, "content": content, "single_word": false, "lstrip": false, "rstrip": true,
        "normalized": false, "special": true})
}

fn split(pattern: Value) -> Value {
    json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false})
}

fn byte_level() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false})
}

fn sequence(key: &str, steps: Vec<Value>) -> Value {
    json!({"type": "Sequence", key: steps})
}

fn replace(pattern: Value, content: &str) -> Value {
    json!({"type": "Replace", "pattern": pattern, "content": content})
}

/// One of each kind that is published.
fn published() -> Vec<Value> {
    let normalised = |normaliser: Value| tokenizer(|it| it["normalizer"] = normaliser);
    let words = json!({"[UNK]": 0, "hello": 1, "##a": 2, "a": 3, "aa": 4, "it": 5, ",": 6, "uber": 7, "end": 8});
    let pieces = json!([["<unk>", 0.0], ["▁", -1.0], ["▁a", -1.5], ["a", -2.0], ["aa", -2.5], ["▁end", -3.0]]);
    vec![
        tokenizer(|_| {}),
        tokenizer(|it| {
            let pattern = split(json!({"Regex": LLAMA3}));
            it["pre_tokenizer"] = sequence("pretokenizers", vec![pattern, byte_level()]);
        }),
        tokenizer(|it| {
            let digits = json!({"type": "Digits", "individual_digits": true});
            it["pre_tokenizer"] = sequence("pretokenizers", vec![digits, byte_level()]);
        }),
        // Gemma.
        tokenizer(|it| {
            it["normalizer"] = replace(json!({"String": " "}), "▁");
            it["pre_tokenizer"] = json!({"type": "Split", "pattern": {"String": " "},
                "behavior": "MergedWithPrevious", "invert": false});
        }),
        // Llama 2.
        tokenizer(|it| {
            let steps = vec![json!({"type": "Prepend", "prepend": "▁"}), replace(json!({"String": " "}), "▁")];
            it["normalizer"] = sequence("normalizers", steps);
            it["pre_tokenizer"] = Value::Null;
            it["model"]["byte_fallback"] = json!(true);
        }),
        normalised(json!({"type": "NFC"})),
        normalised(sequence(
            "normalizers",
            vec![
                json!({"type": "NFKD"}),
                json!({"type": "Lowercase"}),
                json!({"type": "StripAccents"}),
                replace(json!({"Regex": " {2,}"}), " "),
            ],
        )),
        tokenizer(|it| {
            it["normalizer"] = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": null, "lowercase": true});
            it["pre_tokenizer"] = json!({"type": "BertPreTokenizer"});
            it["model"] = json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": words});
        }),
        tokenizer(|it| {
            it["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
                "split": true});
            it["model"] = json!({"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": false});
        }),
    ]
}

#[test]
fn what_a_published_tokenizer_makes_of_a_text_is_what_the_library_makes_of_it() {
    for value in published() {
        let bytes = value.to_string().into_bytes();
        let bounded = read(&bytes).unwrap();
        let mut library = tokenizers::Tokenizer::from_bytes(&bytes).unwrap();
        for text in TEXTS.iter().map(|text| (*text).to_owned()).chain([TEXTS.concat().repeat(40)]) {
            for parse_special in [true, false] {
                library.set_encode_special_tokens(!parse_special);
                let theirs = library.encode_fast(text.as_str(), false).unwrap();
                let name = (&value["pre_tokenizer"], &value["model"]["type"]);
                assert_eq!(
                    bounded.encode(&text, false, parse_special).unwrap(),
                    theirs.get_ids(),
                    "{name:?}: {text:?}"
                );
            }
        }
    }
}

fn refused(value: &Value) -> String {
    match read(value.to_string().as_bytes()) {
        Ok(_) => panic!("it is taken"),
        Err(failure) => failure.public,
    }
}

/// A bound of the file: at the limit it is taken, one past it refused in words.
fn bound(word: &str, limit: usize, make: impl Fn(usize) -> Value) {
    if let Err(failure) = read(make(limit).to_string().as_bytes()) {
        panic!("{word} at {limit}: {failure:?}");
    }
    let said = refused(&make(limit + 1));
    assert!(said.contains("tokenizer.json") && said.contains(word), "{word}: {said}");
}

#[test]
fn files_have_their_limits() {
    bound("normalizer", REPLACEMENT_BYTES_MAX, |bytes| {
        tokenizer(|it| it["normalizer"] = replace(json!({"String": "a"}), &"x".repeat(bytes)))
    });
    bound("normalizer", REPLACEMENT_BYTES_MAX, |bytes| {
        let prepend = json!({"type": "Prepend", "prepend": "x".repeat(bytes)});
        tokenizer(|it| it["normalizer"] = sequence("normalizers", vec![sequence("normalizers", vec![prepend])]))
    });
    bound("normalizer", STEPS_MAX - 1, |steps| {
        tokenizer(|it| it["normalizer"] = sequence("normalizers", vec![json!({"type": "NFC"}); steps]))
    });
    bound("pre_tokenizer", STEPS_MAX - 1, |steps| {
        tokenizer(|it| it["pre_tokenizer"] = sequence("pretokenizers", vec![byte_level(); steps]))
    });
    bound("post_processor", MARKERS_MAX - 1, |markers| {
        let mut single = vec![json!({"SpecialToken": {"id": "<s>", "type_id": 0}}); markers];
        single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
        tokenizer(|it| {
            it["post_processor"] = json!({"type": "TemplateProcessing", "single": single, "pair": [],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}});
        })
    });
    bound("adds more", ADDED_TOKENS_MAX, |count| {
        tokenizer(|it| it["added_tokens"] = (0..count).map(|id| added(&format!("<{id}>"))).collect())
    });
    bound("marked", WORD_AFFIX_BYTES_MAX, |bytes| {
        tokenizer(|it| it["model"]["end_of_word_suffix"] = json!("x".repeat(bytes)))
    });
    let pieces = |piece: String| json!({"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], [piece, -1.0]]});
    bound("piece", UNIGRAM_PIECE_BYTES_MAX, |bytes| tokenizer(|it| it["model"] = pieces("x".repeat(bytes))));
    let letters = usize::try_from(WORD_LETTERS_MAX).unwrap();
    bound("max_input_chars_per_word", letters, |letters| {
        tokenizer(|it| {
            it["model"] = json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": letters, "vocab": {"[UNK]": 0}});
        })
    });
}

#[test]
fn what_is_absurd_is_refused_before_the_library_reads_it() {
    let begun = Instant::now();
    let said = refused(&tokenizer(|it| {
        it["decoder"] = json!({"type": "Sequence", "decoders": vec![json!({"type": "Fuse"}); 50_000]})
    }));
    assert!(said.contains("decoder"), "{said}");
    let said = refused(&tokenizer(|it| it["normalizer"] = replace(json!({"Regex": ""}), "x")));
    assert!(said.contains("normalizer"), "{said}");
    let twice = json!([{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
    let said = refused(&tokenizer(|it| {
        it["post_processor"] = json!({"type": "TemplateProcessing", "single": twice, "pair": [], "special_tokens": {}});
    }));
    assert!(said.contains("post_processor"), "{said}");
    let nothing = "0,".repeat(JSON_VALUES_MAX + 1);
    let failure = read(format!("{{\"model\":[{nothing}0]}}").as_bytes()).err().unwrap();
    assert!(failure.public.contains("values"), "{failure:?}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

/// A map of SentencePiece with no letters in it, and one text.
fn charsmap(text_bytes: usize) -> Value {
    use base64::Engine as _;
    let map = [&4_u32.to_le_bytes()[..], &[0; 4], &vec![b'x'; text_bytes], &[0]].concat();
    let map = base64::engine::general_purpose::STANDARD.encode(map);
    json!({"type": "Precompiled", "precompiled_charsmap": map})
}

#[test]
fn a_map_of_letters_puts_no_long_text_in_place_of_one() {
    for (bytes, fits) in [(CHARSMAP_PIECE_BYTES_MAX, true), (CHARSMAP_PIECE_BYTES_MAX + 1, false), (1 << 20, false)] {
        let taken = read(tokenizer(|it| it["normalizer"] = charsmap(bytes)).to_string().as_bytes());
        assert_eq!(taken.is_ok(), fits, "{bytes} bytes");
    }
}

/// Whose files are in order, but not what they make of a text.
fn hostile() -> Vec<(&'static str, Value)> {
    let normalised = |steps: Vec<Value>| tokenizer(|it| it["normalizer"] = sequence("normalizers", steps));
    let patterned = |pattern: &str| {
        let pattern = split(json!({"Regex": pattern}));
        tokenizer(|it| it["pre_tokenizer"] = sequence("pretokenizers", vec![pattern, byte_level()]))
    };
    vec![
        ("doubles", normalised(vec![replace(json!({"String": "a"}), "aa"); 40])),
        ("grows by nothing", normalised(vec![replace(json!({"Regex": "b*"}), &"a".repeat(32)); 8])),
        (
            "doubles bytes",
            normalised([vec![replace(json!({"String": "a"}), "é")], vec![json!({"type": "ByteLevel"}); 40]].concat()),
        ),
        (
            "splits into bytes",
            tokenizer(|it| {
                it["normalizer"] = replace(json!({"String": "a"}), "é");
                it["pre_tokenizer"] = sequence("pretokenizers", vec![byte_level(); 40]);
            }),
        ),
        ("goes back", patterned("(a+)+$")),
        ("goes back to what it had", patterned("(?=a)(a+)+\\1b")),
        ("looks ahead in vain", patterned("(a|aa)+(?!a)b")),
        ("looks at all from everywhere", patterned("a(?=a*(?!a)a*b|)")),
        ("tries all halves", patterned("a(?=(a*)(a*)(a*)(?!\\1\\2\\3)b|)")),
        ("replaces what it goes back for", normalised(vec![replace(json!({"Regex": "(?=a)(a+)+\\1b"}), "x")])),
        ("replaces after a look", normalised(vec![replace(json!({"Regex": "a(?=(a*)(a*)(?!\\1\\2)b|)"}), "x")])),
        (
            "one token",
            tokenizer(|it| {
                it["added_tokens"] = json!([{"id": 0, "content": "a", "single_word": false,
            "lstrip": true, "rstrip": true, "normalized": true, "special": false}])
            }),
        ),
        (
            "long words",
            tokenizer(|it| {
                it["pre_tokenizer"] = json!({"type": "FixedLength", "length": 1000});
                it["model"] = json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "",
                "max_input_chars_per_word": 1000, "vocab": {"[UNK]": 0, "a": 1}});
            }),
        ),
    ]
}

#[test]
fn whatever_a_tokenizer_does_a_text_comes_to_an_end() {
    for (name, value) in hostile() {
        let bounded = read(value.to_string().as_bytes()).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let begun = Instant::now();
        let outcome = bounded.encode(&"a".repeat(30_000), false, true);
        assert!(begun.elapsed() < Duration::from_secs(5), "{name}: {:?}", begun.elapsed());
        if let Err(failure) = &outcome {
            assert!(failure.public.contains("tokenizer"), "{name}: {failure:?}");
        }
        let grows = name.starts_with("doubles") || name.starts_with("grows") || name.starts_with("splits into");
        assert!(!grows || outcome.is_err(), "{name}");
    }
}
