//! Who may talk to the door: hosts (DNS rebinding), origins (CORS) and keys (`docs/conformance.md`, Who may call).
//!
//! A refusal of a page or of a name is 403 with an empty body and has no effect; the request's body is not even read. Whoever
//! passes is an [`Asker`], and what that may do is asked by the row of its path.

use std::net::IpAddr;

use hyper::Method;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE,
    AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, VARY,
};
use hyper::http::request::Parts;

use super::asker::Asker;
use super::config::HttpConfig;
use super::host::{self, Authority, Host};
use super::origin::{AllowedOrigins, PageOrigin};
use super::respond::{HttpReply, empty, text};
use crate::config::{Keys, Right};
use crate::types::KeyName;

const METHODS: &str = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS";
const HEADERS: &str = "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,OpenAI-Beta,X-Api-Key,\
    Anthropic-Version,Anthropic-Beta,Anthropic-Dangerous-Direct-Browser-Access,X-Ollmlx-Timeout,\
    x-stainless-arch,x-stainless-async,x-stainless-custom-poll-interval,\
    x-stainless-helper-method,x-stainless-lang,x-stainless-os,x-stainless-package-version,x-stainless-poll-helper,\
    x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout";
const MAX_AGE: &str = "43200";
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The rules, made once.
#[derive(Debug)]
pub(super) struct Guard {
    origins: AllowedOrigins,
    checks_host: bool,
    host_name: String,
    hosts: Vec<String>,
    keys: Keys,
}

/// What the guard says of a request.
#[derive(Debug)]
pub(super) enum Clearance {
    /// It may go on as this asker; its reply gets this origin. Nobody, where a key is missing or wrong.
    Pass(Option<HeaderValue>, Option<Asker>),
    /// This is the reply.
    Answer(HttpReply),
}

impl Guard {
    pub(super) fn new(config: &HttpConfig) -> Self {
        let host_name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        let hosts: Vec<String> = config.allowed_hosts.iter().map(|name| name.to_ascii_lowercase()).collect();
        Self {
            origins: AllowedOrigins::new(&config.origins),
            checks_host: config.address.ip().is_loopback() || !hosts.is_empty(),
            host_name: host_name.to_ascii_lowercase(),
            hosts,
            keys: config.keys.clone(),
        }
    }

    /// Judges a request by its head and by the address that it comes from.
    pub(super) fn check(&self, head: &Parts, address: IpAddr) -> Clearance {
        let asked = match host::asked(head.version, &head.headers, &head.uri) {
            Ok(asked) => asked,
            Err(wrong) => return Clearance::Answer(text(400, wrong)),
        };
        let allowed_origin = match PageOrigin::of(&head.headers, asked.as_ref()) {
            PageOrigin::Own => None,
            _ if self.origins.any() => Some(HeaderValue::from_static("*")),
            PageOrigin::Other(origin) if self.origins.has(&origin) => HeaderValue::from_str(&origin).ok(),
            PageOrigin::Other(_) | PageOrigin::Unnamed => return Clearance::Answer(empty(403)),
        };
        let is_known = self.knows_host(asked.as_ref());
        if self.checks_host && !is_known {
            return Clearance::Answer(empty(403));
        }
        if head.method == Method::OPTIONS {
            if let Some(origin) = allowed_origin {
                return Clearance::Answer(preflight(origin));
            }
            if !matches!(asked, Some(Authority { host: Host::Address(_), .. })) {
                return Clearance::Answer(empty(204));
            }
        }
        let asker = if self.keys.is_empty() {
            // A page that a name server leads here asks from this machine as well, but under a name of its own.
            let is_here = address.to_canonical().is_loopback() && is_known;
            Some(Asker { key: None, right: Right::Manage, names_paths: is_here, address })
        } else {
            self.brings(&head.headers).map(|(name, right)| {
                let names_paths = right >= Right::Manage;
                Asker { key: Some(name), right, names_paths, address }
            })
        };
        Clearance::Pass(allowed_origin, asker)
    }

    /// Whether a name, or its absence, is one of this machine's or network's own, or of the settings.
    fn knows_host(&self, asked: Option<&Authority>) -> bool {
        let Some(Authority { host, .. }) = asked else { return true };
        let name = match host {
            Host::Address(ip) => {
                let written = ip.to_string();
                return is_near(*ip) || self.hosts.contains(&written) || is_own_address(*ip);
            }
            Host::Name(name) => name,
        };
        let is_below = |suffix: &str| name.ends_with(suffix) && name.len() > suffix.len();
        let further = |host: &String| if host.starts_with('.') { is_below(host) } else { host == name };
        name == "localhost"
            || *name == self.host_name
            || [".localhost", ".local", ".internal"].into_iter().any(is_below)
            || self.hosts.iter().any(further)
    }

    /// The key that a request brings. Every credential must be the same one, so that none can hide another; empty ones are none,
    /// which clients send that know two ways and have a key for one.
    fn brings(&self, headers: &HeaderMap) -> Option<(KeyName, Right)> {
        let bearer = headers.get_all(AUTHORIZATION).iter().map(|value| {
            let (scheme, token) = value.as_bytes().split_at(value.len().min(6));
            let token = if token.is_empty() { Some(token) } else { token.strip_prefix(b" ") };
            token.filter(|_| scheme.eq_ignore_ascii_case(b"bearer"))
        });
        let direct = headers.get_all(API_KEY).iter().map(|value| Some(value.as_bytes()));
        let given = bearer.chain(direct).filter(|given| *given != Some(b""));
        let mut given = given.map(|given| self.keys.find(given?));
        let first = given.next()??;
        let is_same = given.all(|other| other.is_some_and(|other| other.name() == first.name()));
        is_same.then(|| (KeyName::new(first.name()), first.right()))
    }
}

/// Adds what a browser wants to see on the reply to an allowed origin.
pub(super) fn mark(reply: &mut HttpReply, origin: Option<HeaderValue>) {
    if let Some(origin) = origin {
        if origin != "*" {
            reply.headers_mut().append(VARY, HeaderValue::from_static("Origin"));
        }
        reply.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
}

fn preflight(origin: HeaderValue) -> HttpReply {
    let mut reply = empty(204);
    let headers = reply.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(HEADERS));
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
    headers.append(VARY, HeaderValue::from_static("Access-Control-Request-Method"));
    headers.append(VARY, HeaderValue::from_static("Access-Control-Request-Headers"));
    mark(&mut reply, Some(origin));
    reply
}

fn is_near(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unspecified() || (ip.segments()[0] & 0xfe00) == 0xfc00,
    }
}

fn is_own_address(ip: IpAddr) -> bool {
    let Ok(addresses) = nix::ifaddrs::getifaddrs() else { return false };
    addresses.filter_map(|interface| interface.address).any(|address| {
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        let v6 = address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip()));
        v4.or(v6) == Some(ip)
    })
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    const HERE: &str = "127.0.0.1";
    const ELSEWHERE: &str = "192.0.2.7";

    fn guard(bind: &str, allowed_hosts: &[&str], keys: &str) -> Guard {
        Guard::new(&HttpConfig {
            address: bind.parse().unwrap(),
            origins: Vec::new(),
            allowed_hosts: allowed_hosts.iter().map(|&host| host.to_owned()).collect(),
            version: String::new(),
            keys: if keys.is_empty() { Keys::default() } else { Keys::parse(keys).unwrap() },
            context_tokens: 1,
            slots: 1,
            kv_type: String::new(),
            flash_attention: Default::default(),
            threads: 0,
            gpu_layers: 0,
            wired_limit_bytes: 0,
            rules: Default::default(),
        })
    }

    fn local() -> Guard {
        guard("127.0.0.1:11434", &[], "")
    }

    fn clearance(guard: &Guard, method: Method, pairs: &[(&'static str, &str)], from: &str) -> Clearance {
        let mut head = Request::builder().method(method).uri("/api/tags").body(()).unwrap().into_parts().0;
        for (name, value) in pairs {
            head.headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        guard.check(&head, from.parse().unwrap())
    }

    fn status(guard: &Guard, method: Method, pairs: &[(&'static str, &str)]) -> u16 {
        match clearance(guard, method, pairs, HERE) {
            Clearance::Pass(_, Some(_)) => 200,
            Clearance::Pass(_, None) => 401,
            Clearance::Answer(reply) => reply.status().as_u16(),
        }
    }

    #[test]
    fn s09_foreign_origins_are_refused() {
        for evil in ["null", "", "https://evil.example", "http://localhost:@evil.example", "http://a,http://localhost"]
        {
            let head = [("host", "localhost:11434"), ("origin", evil)];
            assert_eq!(status(&local(), Method::POST, &head), 403, "{evil}");
            assert_eq!(status(&local(), Method::OPTIONS, &head), 403, "{evil}");
        }
        let two = [("host", "localhost"), ("origin", "http://localhost:3000"), ("origin", "http://evil.example")];
        assert_eq!(status(&local(), Method::POST, &two), 403);
        for fine in ["http://localhost:3000", "https://127.0.0.1", "app://x", "vscode-webview://abc"] {
            assert_eq!(status(&local(), Method::POST, &[("host", "localhost:11434"), ("origin", fine)]), 200, "{fine}");
        }
    }

    #[test]
    fn row_57_a_host_is_checked_on_loopback_and_where_the_settings_say_so() {
        let open = guard("0.0.0.0:11434", &[], "");
        let closed = guard("0.0.0.0:11434", &["ollama", ".example.com", "8.8.8.8"], "");
        for (host, on_loopback, on_all, with_names) in [
            ("localhost:11434", 200, 200, 200),
            ("LOCALHOST.", 200, 200, 200),
            ("[::1]:11434", 200, 200, 200),
            ("[::ffff:127.0.0.1]", 200, 200, 200),
            ("192.168.1.5", 200, 200, 200),
            ("foo.local", 200, 200, 200),
            ("host.docker.internal:11434", 200, 200, 200),
            ("ollama.localhost", 200, 200, 200),
            ("", 200, 200, 200),
            ("ollama:11434", 403, 200, 200),
            ("ai.example.com", 403, 200, 200),
            ("8.8.8.8", 403, 200, 200),
            ("8.8.4.4", 403, 200, 403),
            ("example.com", 403, 200, 403),
            ("evil.example", 403, 200, 403),
            ("evil.example:11434", 403, 200, 403),
            ("local", 403, 200, 403),
            ("internal", 403, 200, 403),
            ("notlocalhost", 403, 200, 403),
            ("localhost.evil.example", 403, 200, 403),
            ("127.0.0.1.evil.example", 403, 200, 403),
            ("127.1", 400, 400, 400),
            ("2130706433", 400, 400, 400),
            ("::1", 400, 400, 400),
            ("localhost:80:80", 400, 400, 400),
            ("user@localhost", 400, 400, 400),
            (".local", 400, 400, 400),
            ("localhost%00.evil.example", 400, 400, 400),
        ] {
            let of = |guard: &Guard| status(guard, Method::GET, &[("host", host)]);
            assert_eq!((of(&local()), of(&open), of(&closed)), (on_loopback, on_all, with_names), "{host}");
        }
        for guard in [local(), open, closed] {
            assert_eq!(status(&guard, Method::GET, &[]), 400);
            assert_eq!(status(&guard, Method::GET, &[("host", "localhost"), ("host", "localhost")]), 400);
        }
    }

    #[test]
    fn preflights_are_answered() {
        let head = [("host", "localhost"), ("origin", "http://localhost:3000")];
        assert_eq!(status(&local(), Method::OPTIONS, &head), 204);
        assert_eq!(status(&local(), Method::OPTIONS, &[("host", "localhost")]), 204);
        assert_eq!(status(&local(), Method::OPTIONS, &[("host", "127.0.0.1")]), 200, "the table of paths answers");
    }

    #[test]
    fn s11_one_rule_for_every_way_to_bring_a_key() {
        let guard = guard("127.0.0.1:11434", &[], "anna use right\nbert manage other");
        for (pairs, expect) in [
            (&[("authorization", "Bearer right")][..], 200),
            (&[("authorization", "bearer right")], 200),
            (&[("x-api-key", "right")], 200),
            (&[("x-api-key", "right"), ("authorization", "Bearer right")], 200),
            (&[("authorization", "Bearer wrong"), ("x-api-key", "right")], 401),
            (&[("authorization", "Bearer right"), ("x-api-key", "wrong")], 401),
            (&[("authorization", "Bearer right"), ("x-api-key", "other")], 401),
            (&[("authorization", "Bearer right"), ("authorization", "Bearer other")], 401),
            (&[("authorization", "Bearer right"), ("x-api-key", "")], 200),
            (&[("authorization", "Bearer "), ("x-api-key", "right")], 200),
            (&[("authorization", "Bearer"), ("x-api-key", "right")], 200),
            (&[("authorization", "Basic cmlnaHQ="), ("x-api-key", "right")], 401),
            (&[("authorization", "Bearer  right")], 401),
            (&[("authorization", "Bearerright")], 401),
            (&[("authorization", "right")], 401),
            (&[("authorization", "Bearer")], 401),
            (&[("x-api-key", "")], 401),
            (&[], 401),
        ] {
            let head = [&[("host", "localhost")], pairs].concat();
            assert_eq!(status(&guard, Method::POST, &head), expect, "{pairs:?}");
        }
    }

    #[test]
    fn who_may_name_paths_is_on_this_machine_or_has_a_key_for_it() {
        let rights = |guard: &Guard, pairs: &[(&'static str, &str)], from: &str| {
            let Clearance::Pass(_, Some(asker)) = clearance(guard, Method::POST, pairs, from) else {
                panic!("{pairs:?}")
            };
            (asker.right, asker.names_paths)
        };
        let open = guard("0.0.0.0:11434", &[], "");
        assert_eq!(rights(&open, &[("host", "localhost")], HERE), (Right::Manage, true));
        assert_eq!(rights(&open, &[("host", "localhost")], "::ffff:127.0.0.1"), (Right::Manage, true));
        assert_eq!(rights(&open, &[("host", "localhost")], ELSEWHERE), (Right::Manage, false));
        assert_eq!(rights(&open, &[("host", "evil.example")], HERE), (Right::Manage, false), "a page led here by name");
        let keyed = guard("0.0.0.0:11434", &[], "anna use a\nbert manage b");
        for from in [HERE, ELSEWHERE] {
            assert_eq!(rights(&keyed, &[("host", "h"), ("x-api-key", "a")], from), (Right::Use, false));
            assert_eq!(rights(&keyed, &[("host", "h"), ("x-api-key", "b")], from), (Right::Manage, true));
        }
    }
}
