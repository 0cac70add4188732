#!/usr/bin/env python3
"""Runs the cases of cases.jsonl against a server that has the models smol, embed and base, and says how many passed, are
known to fail and were not chosen. Standard library only. README.md says what the words in a case mean. Status 1 where one
fails that should not.

usage: run.py [--base http://127.0.0.1:11434] [--only H01,H02] [--models smol,embed,base] [--timeout 120]
"""

import argparse
import base64
import datetime
import http.client
import json
import math
import os
import re
import struct
import sys
import time
from urllib.parse import urlsplit

ap = argparse.ArgumentParser(add_help=True)
ap.add_argument("--base", default="http://127.0.0.1:11434")
ap.add_argument("--file", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "cases.jsonl"))
ap.add_argument("--only", default="")
ap.add_argument("--models", default="smol,embed,base")
ap.add_argument("--timeout", type=float, default=120)
opt = ap.parse_args()
HOST = urlsplit(opt.base)


class Bad(Exception):
    pass


def need(ok, why):
    if not ok:
        raise Bad(why)


def expand(s):
    return re.sub(r"%%REPEAT\((.*?),(\d+)\)%%", lambda m: m[1] * int(m[2]), s, flags=re.S)


def walk(v):
    if isinstance(v, str):
        return expand(v)
    if isinstance(v, list):
        return [walk(x) for x in v]
    if isinstance(v, dict):
        return {k: walk(x) for k, x in v.items()}
    return v


class Reply:
    """One answered step: status, body, records of a stream, and the dialect-independent view of it."""

    def __init__(self, step, status, raw):
        self.step, self.status, self.raw = step, status, raw
        self.body, self.records, self.events, self.done_marks = None, [], [], 0
        self.sent = walk(step.get("body")) if step.get("body") is not None else None
        if self.sent is None and step.get("raw"):
            try:
                self.sent = json.loads(expand(step["raw"]))
            except (ValueError, RecursionError):
                self.sent = None
        kind = step["expect"].get("stream") if status == 200 else None
        text = raw.decode("utf-8", "strict" if status == 200 else "replace")
        if kind == "ndjson":
            self.records = [json.loads(x) for x in text.split("\n") if x.strip()]
        elif kind == "sse":
            for block in re.split(r"\r?\n\r?\n", text):
                name, data = None, []
                for line in re.split(r"\r?\n", block):
                    if line.startswith("event:"):
                        name = line[6:].strip()
                    elif line.startswith("data:"):
                        data.append(line[5:].lstrip(" ") if line[5:6] == " " else line[5:])
                if not data:
                    continue
                if "\n".join(data).strip() == "[DONE]":
                    self.done_marks += 1
                    self.events.append((name, "[DONE]"))
                else:
                    j = json.loads("\n".join(data))
                    self.records.append(j)
                    self.events.append((name, j))
        else:
            try:
                self.body = json.loads(text) if text.strip() else None
            except ValueError:
                self.body = None

    def pieces(self):
        p = self.step["path"]
        for r in self.records or ([self.body] if isinstance(self.body, dict) else []):
            if "/messages" in p:
                if r.get("type") == "content_block_delta":
                    yield r["delta"].get("text") or ""
                for c in (r.get("content") or []) if r.get("type") == "message" else []:
                    if c.get("type") == "text":
                        yield c["text"]
            elif "/responses" in p:
                if r.get("type") == "response.output_text.delta":
                    yield r["delta"]
                for o in r.get("output") or []:
                    for c in o.get("content") or []:
                        if c.get("type") == "output_text":
                            yield c["text"]
            elif "/chat/completions" in p:
                for c in r.get("choices") or []:
                    yield (c.get("message") or c.get("delta") or {}).get("content") or ""
            elif "/completions" in p:
                for c in r.get("choices") or []:
                    yield c.get("text") or ""
            else:
                yield (r.get("message") or {}).get("content") or r.get("response") or ""

    @property
    def text(self):
        return "".join(self.pieces())

    @property
    def text_or_none(self):
        """None when the place where the text belongs does not hold a string."""
        b, p = self.body, self.step["path"]
        if self.records or not isinstance(b, dict):
            return self.text
        try:
            if "/messages" in p:
                return self.text
            if "/responses" in p:
                return self.text
            if "/chat/completions" in p:
                return b["choices"][0]["message"]["content"]
            if "/completions" in p:
                return b["choices"][0]["text"]
            return b["message"]["content"] if "message" in b else b["response"]
        except (KeyError, IndexError, TypeError):
            return None

    def first(self, *getters):
        for r in reversed(self.records or [self.body]):
            for g in getters:
                try:
                    v = g(r)
                except (KeyError, IndexError, TypeError):
                    continue
                if v is not None and v != "":
                    return v
        return None

    @property
    def finish(self):
        return self.first(lambda r: r["done_reason"], lambda r: r["choices"][0]["finish_reason"], lambda r: r["stop_reason"],
                          lambda r: r["delta"]["stop_reason"], lambda r: r["response"]["status"], lambda r: r["status"])

    @property
    def prompt_tokens(self):
        def whole(u):  # servers that report cached tokens apart
            return u["input_tokens"] + u.get("cache_read_input_tokens", 0) + u.get("cache_creation_input_tokens", 0)
        return self.first(lambda r: r["prompt_eval_count"], lambda r: r["usage"]["prompt_tokens"], lambda r: whole(r["usage"]),
                          lambda r: whole(r["message"]["usage"]))

    @property
    def completion_tokens(self):
        return self.first(lambda r: r["eval_count"], lambda r: r["usage"]["completion_tokens"], lambda r: r["usage"]["output_tokens"])

    @property
    def vectors(self):
        b = self.body or {}
        return b.get("embeddings") or [d["embedding"] for d in b.get("data") or []]


MISSING = object()


def get(rep, path):
    if path.startswith("$"):
        return {"$text": rep.text_or_none, "$finish": rep.finish, "$prompt_tokens": rep.prompt_tokens,
                "$completion_tokens": rep.completion_tokens if rep.completion_tokens is not None else 0}[path]
    v = rep.body
    if rep.records and path.split(".")[0] in ("first", "last"):
        head, _, path = path.partition(".")
        v = rep.records[0 if head == "first" else -1]
    for part in re.findall(r"[^.\[\]]+|\[\d+\]", path):
        try:
            v = v[int(part[1:-1])] if part[0] == "[" else v[part]
        except (KeyError, IndexError, TypeError):
            return MISSING
    return v


NAMES = {str: "string", bool: "boolean", int: "number", float: "number", list: "array", dict: "object", type(None): "null"}


def compare(got, want):
    if not (isinstance(want, dict) and want and all(k.startswith("$") for k in want)):
        return got == want
    for op, w in want.items():
        if op == "$absent":
            ok = (got is MISSING) == w
        elif got is MISSING:
            ok = False
        elif op == "$type":
            ok = NAMES.get(type(got)) == w
        elif op == "$in":
            ok = got in w
        elif op == "$len":
            ok = isinstance(got, (list, str)) and len(got) == w
        elif op == "$re":
            ok = isinstance(got, str) and re.search(w, got) is not None
        elif op == "$contains":
            ok = isinstance(got, str) and w.lower() in got.lower()
        elif op in ("$gt", "$gte", "$lt", "$lte"):
            ok = isinstance(got, (int, float)) and {"$gt": got > w, "$gte": got >= w, "$lt": got < w, "$lte": got <= w}[op]
        else:
            raise Bad("unknown operator " + op)
        if not ok:
            return False
    return True


# ---- JSON Schema, as much of it as the cases use
def valid(v, s, root, depth=0):
    need(depth < 200, "schema check too deep")
    if s is True or s == {}:
        return True
    if "$ref" in s:
        t = root
        for part in s["$ref"].lstrip("#/").split("/"):
            t = t[int(part)] if isinstance(t, list) else t[part]
        return valid(v, t, root, depth + 1)
    if "anyOf" in s and not any(valid(v, x, root, depth + 1) for x in s["anyOf"]):
        return False
    if "const" in s and v != s["const"] or "enum" in s and v not in s["enum"]:
        return False
    t = s.get("type")
    if t and not {"object": isinstance(v, dict), "array": isinstance(v, list), "string": isinstance(v, str), "null": v is None,
                  "boolean": isinstance(v, bool), "integer": isinstance(v, int) and not isinstance(v, bool),
                  "number": isinstance(v, (int, float)) and not isinstance(v, bool)}[t]:
        return False
    if isinstance(v, dict):
        props = s.get("properties", {})
        if any(r not in v for r in s.get("required", [])) or s.get("additionalProperties") is False and set(v) - set(props):
            return False
        return all(valid(x, props[k], root, depth + 1) for k, x in v.items() if k in props)
    if isinstance(v, list):
        if not s.get("minItems", 0) <= len(v) <= s.get("maxItems", 10**9):
            return False
        it = s.get("items", True)
        return all(valid(x, it[i] if isinstance(it, list) and i < len(it) else ({} if isinstance(it, list) else it), root, depth + 1) for i, x in enumerate(v))
    if isinstance(v, str):
        return len(v) <= s.get("maxLength", 10**9) and ("pattern" not in s or re.search(s["pattern"], v) is not None)
    return True


def schema_of(sent):
    rf = sent.get("response_format") or {}
    for s in (sent.get("format"), (rf.get("json_schema") or {}).get("schema"), rf.get("schema"),
              ((sent.get("text") or {}).get("format") or {}).get("schema")):
        if isinstance(s, dict):
            return s
    raise Bad("no schema in the request")


def unit(v):
    n = math.sqrt(sum(x * x for x in v))
    return [x / n for x in v]


def logprob_entries(rep):
    out = []
    for r in rep.records or [rep.body]:
        lp = r.get("logprobs") if "choices" not in r else ((r["choices"] or [{}])[0].get("logprobs") or {}).get("content")
        out += lp or []
    return out


def clause(rep, past, words):
    op, arg = words[0], words[1:]
    other = past[int(arg[0]) - 1] if arg and arg[0].isdigit() and op not in ("vectors=", "choices-indexed", "text-shorter", "prompt-tokens-max", "completion-tokens-max", "completion-tokens-min", "expires-in", "same-vector") else None
    if op == "if-200":
        if rep.status == 200:
            clause(rep, past, arg)
    elif op == "utf8":
        need("\ufffd" not in rep.text, "U+FFFD in " + repr(rep.text[-20:]))
        need(not any(0xD800 <= ord(c) < 0xE000 for c in rep.text), "lone surrogate")
        need(all("\ufffd" not in x for x in rep.pieces()), "U+FFFD in a record")
    elif op == "ndjson":
        need(rep.records, "no records")
        need(not any("error" in r for r in rep.records), "error record")
        need([bool(r.get("done")) for r in rep.records].count(True) == 1 and rep.records[-1].get("done"), "done is not exactly once and last")
    elif op == "sse-openai":
        need(rep.done_marks == 1 and rep.events[-1][1] == "[DONE]", "[DONE] %d times or not last" % rep.done_marks)
        need(len({r.get("id") for r in rep.records}) == 1 and len({r.get("created") for r in rep.records}) == 1, "id or created changes")
        ch = [c for r in rep.records for c in r["choices"]]
        need(ch and ch[0]["delta"].get("role") == "assistant", "first delta has no role assistant")
        for c in ch:
            need("finish_reason" in c and c["finish_reason"] in (None, "stop", "length", "tool_calls", "content_filter"), "finish_reason %r" % c.get("finish_reason", "absent"))
            need("content" not in c["delta"] or isinstance(c["delta"]["content"], str), "delta content is not a string")
        need([c["finish_reason"] for c in ch].count(None) == len(ch) - 1 and ch[-1]["finish_reason"], "finish_reason not exactly once and last")
    elif op == "finish-empty":
        last = [c for r in rep.records for c in r["choices"] if c["finish_reason"]][-1]
        need(not last["delta"].get("content"), "the record with finish_reason carries text")
    elif op == "sse-anthropic":
        ev = [(n, r) for n, r in rep.events if n != "ping"]
        need(all(r != "[DONE]" and n == r["type"] for n, r in ev), "event name differs from type")
        m = ev[0][1]
        need(m["type"] == "message_start", "does not open with message_start")
        m = m["message"]
        need(m.get("type") == "message" and m.get("role") == "assistant" and m.get("content") == [] and m.get("id") and m.get("model"), "message_start incomplete")
        need(all(isinstance((m.get("usage") or {}).get(k), int) for k in ("input_tokens", "output_tokens")), "message_start has no integer usage")
        index, is_open = -1, False
        for n, r in ev[1:-2]:
            if n == "content_block_start":
                need(not is_open and r["index"] == index + 1, "block order")
                index, is_open = r["index"], True
            elif n == "content_block_delta":
                need(is_open and r["index"] == index, "delta outside its block")
            elif n == "content_block_stop":
                need(is_open and r["index"] == index, "stop outside its block")
                is_open = False
            else:
                raise Bad("unexpected event " + n)
        need(not is_open, "block left open")
        d = ev[-2][1]
        need(d["type"] == "message_delta" and isinstance(d["delta"].get("stop_reason"), str) and isinstance(d["usage"].get("output_tokens"), int) and d["usage"]["output_tokens"] > 0, "message_delta incomplete")
        need(ev[-1][0] == "message_stop", "message_stop is not last")
    elif op == "sse-responses":
        ev = [(n, r) for n, r in rep.events if r != "[DONE]"]
        need(all(n == r.get("type") for n, r in ev), "event name differs from type")
        need([r.get("sequence_number") for _, r in ev] == list(range(len(ev))), "sequence_number has gaps")
        names = [n for n, _ in ev]
        need(names[:2] == ["response.created", "response.in_progress"], "does not open with created, in_progress")
        need(names[-1] in ("response.completed", "response.incomplete"), "no completed at the end")
        want = ["response.output_item.added", "response.content_part.added", "response.output_text.delta", "response.output_text.done", "response.content_part.done", "response.output_item.done"]
        at = [names.index(w) if w in names else -1 for w in want]
        need(-1 not in at and at == sorted(at), "missing or misplaced: " + ", ".join(w for w, i in zip(want, at) if i < 0))
        for n, r in ev:
            if n == "response.output_text.delta":
                need(all(k in r for k in ("item_id", "output_index", "content_index")), "delta without indexes")
            if n in ("response.created", "response.in_progress", names[-1]):
                need(all(k in r.get("response", {}) for k in ("id", "model", "object", "created_at")), n + " without id, model, object, created_at")
        full = "".join(c["text"] for o in ev[-1][1]["response"]["output"] for c in o.get("content") or [] if c.get("type") == "output_text")
        need(full == rep.text, "completed text differs from the deltas")
    elif op == "no-usage":
        need(not any(r.get("usage") for r in rep.records), "usage although not asked for")
    elif op in ("prompt-tokens=", "prompt-tokens>", "prompt-tokens>="):
        a, b = rep.prompt_tokens, other.prompt_tokens
        need(a is not None and b is not None and {"=": a == b, ">": a > b, ">=": a >= b}[op[13:]], "prompt tokens %r, step %s had %r" % (a, arg[0], b))
    elif op == "prompt-tokens-plus":
        need(rep.prompt_tokens >= other.prompt_tokens + int(arg[1]), "prompt tokens %r, step %s had %r" % (rep.prompt_tokens, arg[0], other.prompt_tokens))
    elif op == "prompt-tokens-max":
        need((rep.prompt_tokens or 0) <= int(arg[0]), "prompt tokens %r" % rep.prompt_tokens)
    elif op == "completion-tokens-max":
        need((rep.completion_tokens or 0) <= int(arg[0]), "completion tokens %r" % rep.completion_tokens)
    elif op == "completion-tokens-min":
        need((rep.completion_tokens or 0) >= int(arg[0]), "completion tokens %r" % rep.completion_tokens)
    elif op == "input-tokens-as":
        need(rep.body.get("input_tokens") == other.prompt_tokens, "counted %r, real %r" % (rep.body.get("input_tokens"), other.prompt_tokens))
    elif op == "same-text":
        need(rep.text == other.text, "text %r, step %s had %r" % (rep.text[:60], arg[0], other.text[:60]))
    elif op == "same-finish":
        need(rep.finish == other.finish, "finish %r, step %s had %r" % (rep.finish, arg[0], other.finish))
    elif op == "nonempty":
        need(rep.text.strip(), "empty text")
    elif op == "text-shorter":
        need(len(rep.text) < int(arg[0]), "%d characters" % len(rep.text))
    elif op in ("schema", "schema-if-stop", "json", "json-object-if-stop"):
        if op.endswith("-if-stop") and rep.finish not in ("stop", "end_turn", "completed"):
            return
        try:
            v = json.loads(rep.text)
        except ValueError:
            raise Bad("not JSON: %r (finish %s)" % (rep.text[:80], rep.finish))
        if op.startswith("schema"):
            s = schema_of(rep.sent)
            need(valid(v, s, s), "violates the schema: %r" % rep.text[:100])
        if op.startswith("json-object"):
            need(isinstance(v, dict), "not an object")
    elif op == "json-is":
        need(json.loads(rep.text) == json.loads(arg[0]), "text %r" % rep.text[:80])
    elif op == "choices-indexed":
        need([c["index"] for c in rep.body["choices"]] == list(range(int(arg[0]))), "choice indexes")
    elif op == "names-once":
        need([m["name"].lower() for m in rep.body["models"]].count(arg[0]) == 1, arg[0] + " is not listed exactly once")
    elif op == "nonnull":
        need(get(rep, arg[0]) not in (None, MISSING), arg[0] + " is null")
    elif op == "logprobs-complete":
        es = logprob_entries(rep)
        n = rep.completion_tokens
        need(es and (n is None or len(es) == n), "%d entries for %r tokens" % (len(es), n))
        asked = rep.sent.get("top_logprobs") or 0
        for e in es:
            need(e["logprob"] <= 1e-6, "positive log probability")
            t = [x["logprob"] for x in e.get("top_logprobs") or []]
            need(len(t) <= asked and t == sorted(t, reverse=True), "top_logprobs wrong")
    elif op == "logprob-bytes":
        joined = b"".join(bytes(e["bytes"]) for e in logprob_entries(rep))
        need(joined.decode("utf-8", "ignore") == rep.text, "bytes %r, text %r" % (joined, rep.text))
    elif op == "stop-sequence-named":
        for r in rep.records or [rep.body]:
            d = r.get("delta") if r.get("type") == "message_delta" else r
            if d.get("stop_reason") == "stop_sequence":
                need(d.get("stop_sequence") in rep.sent["stop_sequences"], "stop_sequence %r" % d.get("stop_sequence"))
    elif op == "norm1":
        for v in rep.vectors:
            need(abs(math.sqrt(sum(x * x for x in v)) - 1) < 2e-3, "norm is not 1")
    elif op == "finite":
        need(all(isinstance(x, (int, float)) and math.isfinite(x) for v in rep.vectors for x in v), "not finite")
    elif op == "vectors=":
        need(len(rep.vectors) == int(arg[0]), "%d vectors" % len(rep.vectors))
    elif op == "same-vector":
        mine, n, theirs = int(arg[0]), int(arg[1]), int(arg[2])
        a, b = unit(rep.vectors[mine]), unit(past[n - 1].vectors[theirs])
        c = sum(x * y for x, y in zip(a, b))
        need(len(a) == len(b) and c >= 0.999, "cosine %.4f" % c)
    elif op == "base64-matches":
        for mine, theirs in zip(rep.body["data"], other.body["data"]):
            b = base64.b64decode(mine["embedding"], validate=True)
            f = struct.unpack("<%df" % (len(b) // 4), b)
            need(len(f) == len(theirs["embedding"]) and max(abs(x - y) for x, y in zip(f, theirs["embedding"])) < 1e-4, "base64 differs from float")
    elif op == "expires-in":
        left = min(abs(parse_time(m["expires_at"]) - time.time() - (int(arg[0]) + int(arg[1])) / 2) for m in rep.body["models"])
        need(left <= (int(arg[1]) - int(arg[0])) / 2, "no model expires in %s to %s s" % (arg[0], arg[1]))
    elif op == "json-body":
        need(isinstance(rep.body, dict), "body is not a JSON object: %r" % rep.raw[:60])
    else:
        raise Bad("unknown clause " + op)


def parse_time(s):
    s = re.sub(r"(\.\d{6})\d+", r"\1", s.replace("Z", "+00:00"))
    s = re.sub(r"\.(\d{1,5})(?=[+-])", lambda m: "." + m[1].ljust(6, "0"), s)
    return datetime.datetime.fromisoformat(s).timestamp()


def call(step):
    c = http.client.HTTPConnection(HOST.hostname, HOST.port or 80, timeout=opt.timeout)
    headers = {"Content-Type": "application/json", "Accept": "*/*"}
    for k, v in (step.get("headers") or {}).items():
        headers.pop(k, None)
        if v is not None:
            headers[k] = v
    data = None
    if "raw" in step:
        data = expand(step["raw"]).encode()
    elif "body" in step:
        data = json.dumps(walk(step["body"])).encode()
    chunked = headers.pop("Transfer-Encoding", "").lower() == "chunked"
    c.putrequest(step["method"], step["path"], skip_accept_encoding=True)
    for k, v in headers.items():
        c.putheader(k, v)
    if chunked:
        c.putheader("Transfer-Encoding", "chunked")
        c.endheaders()
        for i in range(0, len(data), 7):
            part = data[i:i + 7]
            c.send(b"%x\r\n%s\r\n" % (len(part), part))
        c.send(b"0\r\n\r\n")
    else:
        if data is not None:
            c.putheader("Content-Length", str(len(data)))
        c.endheaders()
        if data:
            c.send(data)
    r = c.getresponse()
    raw = r.read()
    c.close()
    return Reply(step, r.status, raw)


def run(case):
    past = []
    for i, step in enumerate(case["steps"], 1):
        try:
            rep = call(step)
            past.append(rep)
            e = step["expect"]
            need(rep.status in e["status"], "status %d %r" % (rep.status, rep.raw[:120]))
            for path, want in (e.get("json") or {}).items():
                got = get(rep, path)
                need(compare(got, want), "%s is %s, expected %s" % (path, "absent" if got is MISSING else repr(got)[:80], json.dumps(want)))
            hay = rep.text if rep.text else rep.raw.decode("utf-8", "replace") if not step["expect"].get("stream") and rep.text_or_none is None else rep.text
            for s in e.get("contains") or []:
                need(s in hay, "%r is not in %r" % (s, hay[:80]))
            for s in e.get("not_contains") or []:
                need(s not in hay, "%r is in %r" % (s, hay[:80]))
            for one in (e.get("invariant") or "").split("|")[0].split(";"):
                if one.split():
                    clause(rep, past, one.split())
        except Bad as b:
            return "step %d %s: %s" % (i, step["path"], b)
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, re.error) as x:
            return "step %d %s: %s %s" % (i, step["path"], type(x).__name__, str(x)[:160])
    try:
        rep = call({"method": "GET", "path": "/api/version", "expect": {"status": [200]}})
        return "" if rep.status == 200 else "afterwards /api/version is %d" % rep.status
    except OSError as x:
        return "afterwards the server does not answer: %s" % x


def main():
    cases = [json.loads(line) for line in open(opt.file, encoding="utf-8") if line.strip()]
    only = set(filter(None, opt.only.split(",")))
    bad = ran = still_open = 0
    for case in cases:
        if only and case["id"] not in only or not set(case["models"]) <= set(opt.models.split(",")):
            continue
        t = time.time()
        why = run(case)
        ran += 1
        outcome = "FAIL" if why else "ok"
        if "open" in case:
            outcome, why = ("open", case["open"]) if why else ("FAIL", "it passes, so it is no longer open")
        bad += outcome == "FAIL"
        still_open += outcome == "open"
        print("%s %-4s %5.1fs %s%s" % (case["id"], outcome, time.time() - t, case["why"][:90], "\n     " + why if why else ""), flush=True)
    print("%d of %d passed, %d open, %d not chosen" % (ran - bad - still_open, len(cases), still_open, len(cases) - ran))
    sys.exit(0 if ran and not bad else 1)


if __name__ == "__main__":
    main()
