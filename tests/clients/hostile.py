"""Templates, schemas, tokenizers and texts made to harm, by the name of what is wrong with them. Each is the smallest of its
kind that did harm to some server, or would have to one without a bound.
"""

import json

import forge
from forge import MB, mlx_tokenizer


def grown(first, more, times):
    """A value that grows in a loop."""
    loop = f"{{% for i in range({times}) %}}{{% set ns.a = {more} %}}{{% endfor %}}"
    return f"{{% set ns = namespace(a={first}) %}}" + loop


def tenfold(depth):
    """Templates of which each calls the one before ten times."""
    calls = (f'{{{{define "t{i}"}}}}' + f'{{{{template "t{i - 1}"}}}}' * 10 + "{{end}}" for i in range(1, depth + 1))
    return "".join(calls)


#: Chat templates in Jinja, as they lie in a model file.
JINJA = {
    "three loops": "".join(f"{{% for {a} in range(999) %}}" for a in "abc") + "x" + "{% endfor %}" * 3,
    "power": '{{ "a" * 10**9 }}',
    "macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "long range": "{% for x in range(10**9) %}{% endfor %}",
    "long list": "{{ range(10**9)|list }}",
    "doubling": "{% set ns = namespace(a='aaaaaaaa') %}" + "{% set ns.a = ns.a ~ ns.a %}" * 60 + "{{ ns.a }}",
    "filters": "{{ 'a'" + "|replace('a','aa')" * 60 + " }}",
    "join": "{{ range(100000)|join('" + "x" * 10000 + "') }}",
    "indent": "{{ 'a\n'*100000 | indent(1000000) }}",
    "sort": "{% for x in range(100000) %}{{ range(1000)|sort|length }}{% endfor %}",
    "nested lists": grown("[]", "[ns.a, ns.a]", 100000) + "{{ ns.a }}",
    "format": "{{ '%1000000000d'|format(1) }}",
    "center": "{{ 'a'|center(1000000000) }}",
    "recursion": "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}",
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "tojson": grown("[1]", "[ns.a, ns.a]", 40) + "{{ ns.a|tojson }}",
    "indent tojson": "{{ [[[1]]]|tojson(indent=1000000000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "zfill": "{{ '1'.zfill(1000000000) }}",
    "splits": "{{ ('a,'*1000000).split(',')|length }}{{ ('a,'*1000000).split(',')|length }}",
    "batch": "{{ range(1000000)|batch(1)|list|length }}",
    "upper": "{% for i in range(300000) %}{{ messages[0].content|upper|lower|title|trim }}{% endfor %}",
    "wordwrap": "{{ ('a '*1000000)|wordwrap(1) }}",
    "namespace in itself": "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
    "chain": grown("[1, 2]", "ns.a|chain(ns.a)", 40) + "{{ ns.a|length }}",
    "str.format": "{{ '{:>1000000000}'.format('a') }}",
    "loop.cycle": "{% for a in [1] %}{{ loop.cycle() }}{% endfor %}",
    "90000 deep": grown("[1]", "[ns.a]", 90000) + "{{ ns.a|tojson }}{{ ns.a }}{{ ns.a == [ns.a] }}",
    "urlize": "{{ ('<'*1000000)|escape|escape|escape|escape|escape|escape }}",
}

#: Templates in Go, as a request or a Modelfile brings them.
GO = {
    "nested ranges": "{{range .Messages}}" * 12 + "x" + "{{end}}" * 12,
    "nested $": "{{$m := .Messages}}" + "{{range $m}}" * 12 + "x" + "{{end}}" * 12,
    "printf": '{{printf "%1000000000d" 1}}',
    "printf *": '{{printf "%*d" 1000000000 1}}',
    "printf s": '{{printf "%1000000000s" .Prompt}}',
    "self": '{{define "x"}}{{template "x"}}{{end}}{{template "x"}}',
    "two": '{{define "a"}}{{template "b"}}{{end}}{{define "b"}}{{template "a"}}{{end}}{{template "a"}}',
    "doubling": "{{$a := .Prompt}}" + '{{$a = printf "%s%s%s%s" $a $a $a $a}}' * 40 + "{{$a}}",
    "deep": "{{" + "(" * 20000 + "1" + ")" * 20000 + "}}",
    "deep if": "{{if true}}" * 20000 + "{{end}}" * 20000,
    "expand": '{{define "t0"}}x{{end}}' + tenfold(11) + '{{template "t11"}}',
    "call": "{{call .Prompt}}",
    "html": "{{.Prompt|html|html|html|js|js|urlquery}}",
    "slice": "{{slice .Prompt 0 1000000000}}",
    "index": "{{index .Messages 1000000000}}",
    "break": "{{range .Messages}}{{break}}{{end}}",
    "20 MB": "x" * (20 * MB),
    "while": "{{range 1000000000}}x{{end}}",
}

#: Schemas of an answer.
SCHEMAS = {
    "bad pattern": {"type": "string", "pattern": "^+[a-z]$"},
    "look behind": {"type": "string", "pattern": "^(?<=x)*y$"},
    "deep pattern": {"type": "string", "pattern": "^" + "(" * 50000 + "a" + ")" * 50000 + "$"},
    "10^5 enum": {"enum": [f"v{i}" for i in range(100000)]},
    "10^4 properties": {
        "type": "object",
        "properties": {f"p{i}": {"type": "string"} for i in range(10000)},
        "required": [f"p{i}" for i in range(10000)],
    },
    "maxLength 10^9": {"type": "string", "maxLength": 10**9},
    "minLength 10^9": {"type": "string", "minLength": 10**9},
    "minItems 10^6": {"type": "array", "items": {"type": "integer"}, "minItems": 10**6},
    "(a|a)*{1,1000}": {"type": "string", "pattern": "(a|a)*{1,1000}"},
    "((a|a)*){1,1000}": {"type": "string", "pattern": "((a|a)*){1,1000}"},
    "(a{1,1000}){1,1000}": {"type": "string", "pattern": "^(a{1,1000}){1,1000}$"},
    "cycle": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "self": {"$ref": "#"},
    "remote": {"$ref": "http://127.0.0.1:1/x"},
    "file": {"$ref": "file:///etc/passwd"},
    "allOf 1000": {"allOf": [{"type": "object", "properties": {f"a{i}": {"type": "string"}}} for i in range(1000)]},
    "anyOf 2^16": {
        "type": "array",
        "prefixItems": [{"anyOf": [{"type": "string", "maxLength": 5}, {"type": "integer"}]} for _ in range(500)],
    },
    "multipleOf": {"type": "number", "multipleOf": 1e-300},
    "range": {"type": "integer", "minimum": -(10**300), "maximum": 10**300},
    "unicode class": {"type": "string", "pattern": "^[\\p{L}&&[^a-z]]{1,5000}$"},
    "x-guidance": {"type": "string", "x-guidance": {"whitespace_pattern": "(((a*)*)*)*"}},
    "not": {"not": {"not": {"not": {}}}},
    "patternProperties": {"type": "object", "patternProperties": {"^(a|b|ab)*c{1,500}$": {"type": "string"}}},
    "format": {"type": "string", "format": "x" * 100000},
    "dot star": {"type": "string", "pattern": "(.*a){40}"},
    "intersections": {"allOf": [{"type": "string", "pattern": f".*[ab]{{{i},{i * 20}}}"} for i in range(1, 30)]},
    "allOf of patterns": {"allOf": [{"type": "string", "pattern": f"^(a|b)*a(a|b){{{i}}}$"} for i in range(20)]},
    "allOf of anyOf": {"allOf": [{"anyOf": [{"const": i}, {"type": "string", "minLength": i}]} for i in range(24)]},
    "lengths and patterns": {
        "type": "object",
        "properties": {f"p{i}": {"type": "string", "pattern": f"^([a-z]{{0,{i * 9}}}[0-9]?){{0,300}}$"} for i in range(20)},
    },
    "uniqueItems": {"type": "array", "items": {"enum": list(range(200))}, "minItems": 200, "uniqueItems": True},
    "oneOf": {"oneOf": [{"type": "object", "properties": {"a": {"const": i}}, "required": ["a"]} for i in range(2000)]},
}


def replace(pattern, content, kind="String"):
    """A step of a normaliser."""
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def split(pattern):
    """A pre-tokenizer that cuts by a pattern, and then spells bytes."""
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    spell = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [cut, spell]}


#: Patterns that some text takes exponentially long, or that are huge themselves.
PATTERNS = ("(a+)+$", "(a|a)*b", "(a|aa)+$", "(?=(a+))a*\\1b", "(.*)*x", "(a{1,30000}){1,30000}", "", "(?:){99999999}")


def normalisers():
    """Those that multiply a text, or run for long."""
    nested = '{"type":"Sequence","normalizers":[' * 60 + '{"type":"NFC"}' + "]}" * 60
    return {
        "replace nothing by 1 MB": replace("", "x" * MB), "replace a by 1 MB": replace("a", "x" * MB),
        "replace a by 30, six times": {"type": "Sequence", "normalizers": [replace("a", "a" * 30)] * 6},
        "prepend 1 MB": {"type": "Prepend", "prepend": "x" * MB},
        "replace by a pattern": replace("(a+)+$", "b", kind="Regex"), "nested": json.loads(nested),
    }


def added_tokens():
    """Lists of added tokens that no vocabulary has."""
    return {
        "10^6 added tokens": [forge.added(256 + i, f"<t{i}>") for i in range(10**6)],
        "ids over the vocabulary": [forge.added(256, "<s>"), forge.added(2**31, "<x>"), forge.added(4 * 10**9, "a")],
        "empty added token": [forge.added(256, ""), forge.added(257, "</s>")],
    }


def tokenizers():
    """(name, `tokenizer.json`); the first is an honest one."""
    yield "plain", mlx_tokenizer()
    for pattern in PATTERNS:
        yield pattern or "empty pattern", mlx_tokenizer(pre_tokenizer=split(pattern))
    for what, normaliser in normalisers().items():
        yield what, mlx_tokenizer(normalizer=normaliser)
    for what, tokens in added_tokens().items():
        yield what, mlx_tokenizer(added_tokens=tokens)
    yield "merges twice over", mlx_tokenizer(model=mlx_tokenizer()["model"] | {"merges": ["a a"] * 100000})


#: Pieces of texts that are repeated for megabytes: some are slow to cut into tokens, some are many tokens.
TEXTS = {
    "one letter": "a", "spaces": " ", "line feeds": "\n", "emoji": "\U0001f600", "unbroken CJK": "\u6f22\u5b57\u4eee\u540d",
    "control tokens": "<|im_start|>", "open angles": "<|", "accents": "e\u0301", "digits": "7", "zero width": "\u200b",
    "letters and quotes": "a'", "upper and lower": "aA", "one long word": "q8Zx0LmVd2Rt",
}


def text(name, size):
    """So many bytes of it."""
    piece = TEXTS[name]
    return piece * (size // len(piece.encode()) + 1)
