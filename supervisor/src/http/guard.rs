//! Who may talk to the door: origins (CORS), hosts (DNS rebinding) and the key (`docs/conformance.md`, Who may call).
//!
//! A refusal is 403 with an empty body and has no effect; the request's body is not even read.

use std::net::IpAddr;

use hyper::Method;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE,
    AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, VARY,
};

use super::config::HttpConfig;
use super::respond::{HttpReply, empty};

const SCHEMES: [&str; 5] = ["app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*"];
const LOCAL_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "0.0.0.0"];
const METHODS: &str = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS";
const HEADERS: &str = "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,OpenAI-Beta,X-Api-Key,\
    Anthropic-Version,Anthropic-Beta,x-stainless-arch,x-stainless-async,x-stainless-custom-poll-interval,\
    x-stainless-helper-method,x-stainless-lang,x-stainless-os,x-stainless-package-version,x-stainless-poll-helper,\
    x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout";
const MAX_AGE: &str = "43200";
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The rules, made once.
#[derive(Debug)]
pub(super) struct Guard {
    origins: Vec<String>,
    any_origin: bool,
    checks_host: bool,
    host_name: String,
    key: Option<String>,
}

/// What the guard says of a request.
#[derive(Debug)]
pub(super) enum Clearance {
    /// It may go on; its reply gets this origin.
    Pass(Option<HeaderValue>),
    /// This is the reply.
    Answer(HttpReply),
    /// The key is missing or wrong.
    Unauthorized,
}

impl Guard {
    pub(super) fn new(config: &HttpConfig) -> Self {
        let mut origins = config.origins.clone();
        for host in LOCAL_HOSTS {
            for scheme in ["http", "https"] {
                origins.push(format!("{scheme}://{host}"));
                origins.push(format!("{scheme}://{host}:*"));
            }
        }
        origins.extend(SCHEMES.iter().map(|&scheme| scheme.to_owned()));
        let host_name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        Self {
            any_origin: config.origins.iter().any(|origin| origin == "*"),
            origins,
            checks_host: config.address.ip().is_loopback(),
            host_name,
            key: config.api_key.clone().filter(|key| !key.is_empty()),
        }
    }

    /// Judges a request by its head.
    pub(super) fn check(&self, method: &Method, headers: &HeaderMap, uri_host: Option<&str>) -> Clearance {
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).or(uri_host).unwrap_or_default();
        let allowed_origin = match headers.get(ORIGIN) {
            Some(origin) if !self.is_own(origin, host) => {
                if !self.allows(origin) {
                    return Clearance::Answer(empty(403));
                }
                let value = if self.any_origin { HeaderValue::from_static("*") } else { origin.clone() };
                Some(value)
            }
            _ => None,
        };
        if self.checks_host && !self.knows_host(host) {
            return Clearance::Answer(empty(403));
        }
        if method == Method::OPTIONS {
            if let Some(origin) = allowed_origin {
                return Clearance::Answer(preflight(origin));
            }
            if strip_port(host).parse::<IpAddr>().is_err() {
                return Clearance::Answer(empty(204));
            }
        }
        if self.key.as_deref().is_some_and(|key| !brings(headers, key)) {
            return Clearance::Unauthorized;
        }
        Clearance::Pass(allowed_origin)
    }

    fn is_own(&self, origin: &HeaderValue, host: &str) -> bool {
        let origin = origin.as_bytes();
        !host.is_empty() && origin.strip_prefix(b"http://").is_some_and(|rest| rest == host.as_bytes())
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        let Ok(origin) = origin.to_str() else { return false };
        self.any_origin || self.origins.iter().any(|allowed| matches(allowed, origin))
    }

    fn knows_host(&self, host: &str) -> bool {
        let name = strip_port(host).to_ascii_lowercase();
        if name.is_empty() || name == "localhost" || name == self.host_name.to_ascii_lowercase() {
            return true;
        }
        if let Ok(ip) = name.parse::<IpAddr>() {
            return is_near(ip) || is_own_address(ip);
        }
        [".localhost", ".local", ".internal"].iter().any(|suffix| name.ends_with(suffix))
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

/// One `*` per entry; `:*` is digits only, so that it can't be made to span a host name.
fn matches(allowed: &str, origin: &str) -> bool {
    let Some((before, after)) = allowed.split_once('*') else { return allowed.eq_ignore_ascii_case(origin) };
    let fits = origin.len() >= before.len() + after.len()
        && origin.is_char_boundary(before.len())
        && origin[..before.len()].eq_ignore_ascii_case(before)
        && origin.ends_with(after);
    if !fits {
        return false;
    }
    let between = &origin[before.len()..origin.len() - after.len()];
    !before.ends_with(':') || before.ends_with("//") || between.bytes().all(|byte| byte.is_ascii_digit())
}

fn strip_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').map_or(rest, |(address, _)| address);
    }
    match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
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

/// Every credential that a request brings must be the right one, so that none can hide another.
fn brings(headers: &HeaderMap, key: &str) -> bool {
    let bearer = headers.get_all(AUTHORIZATION).iter().map(|value| {
        let value = value.as_bytes();
        let is_bearer = value.len() > 7 && value[..7].eq_ignore_ascii_case(b"bearer ");
        if is_bearer { &value[7..] } else { &[] }
    });
    let direct = headers.get_all(API_KEY).iter().map(HeaderValue::as_bytes);
    let mut any = false;
    let mut all = true;
    for given in bearer.chain(direct) {
        any = true;
        all &= equal_in_constant_time(given, key.as_bytes());
    }
    any && all
}

fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b));
    a.len() == b.len() && difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(origins: &[&str], key: Option<&str>) -> Guard {
        Guard::new(&HttpConfig {
            address: "127.0.0.1:11434".parse().unwrap(),
            origins: origins.iter().map(|&origin| origin.to_owned()).collect(),
            version: String::new(),
            api_key: key.map(str::to_owned),
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

    fn status(guard: &Guard, method: Method, pairs: &[(&'static str, &str)]) -> u16 {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        match guard.check(&method, &headers, None) {
            Clearance::Pass(_) => 200,
            Clearance::Answer(reply) => reply.status().as_u16(),
            Clearance::Unauthorized => 401,
        }
    }

    #[test]
    fn s09_foreign_origins_are_refused() {
        let guard = guard(&[], None);
        for evil in [
            "null",
            "https://evil.example",
            "http://localhost.evil.example",
            "http://127.0.0.1.evil.example",
            "http://localhost:1.evil.example",
            "http://localhost:@evil.example",
        ] {
            assert_eq!(status(&guard, Method::POST, &[("host", "localhost:11434"), ("origin", evil)]), 403, "{evil}");
        }
        for fine in ["http://localhost:3000", "https://127.0.0.1", "app://x", "vscode-webview://abc"] {
            assert_eq!(status(&guard, Method::POST, &[("host", "localhost:11434"), ("origin", fine)]), 200, "{fine}");
        }
    }

    #[test]
    fn row_57_foreign_hosts_are_refused_on_loopback() {
        let guard = guard(&[], None);
        for (host, expect) in [
            ("evil.example", 403),
            ("evil.example:11434", 403),
            ("foo.local", 200),
            ("192.168.1.5", 200),
            ("localhost:11434", 200),
            ("[::1]:11434", 200),
            ("8.8.8.8", 403),
        ] {
            assert_eq!(status(&guard, Method::GET, &[("host", host)]), expect, "{host}");
        }
    }

    #[test]
    fn preflights_are_answered() {
        let guard = guard(&[], None);
        let head = [("host", "localhost"), ("origin", "http://localhost:3000")];
        assert_eq!(status(&guard, Method::OPTIONS, &head), 204);
        assert_eq!(status(&guard, Method::OPTIONS, &[("host", "localhost")]), 204);
    }

    #[test]
    fn s11_one_rule_for_every_way_to_bring_the_key() {
        let guard = guard(&[], Some("right"));
        for (pairs, expect) in [
            (&[("authorization", "Bearer right")][..], 200),
            (&[("authorization", "bearer right")], 200),
            (&[("x-api-key", "right")], 200),
            (&[("authorization", "Bearer wrong"), ("x-api-key", "right")], 401),
            (&[("authorization", "Bearer right"), ("x-api-key", "wrong")], 401),
            (&[("authorization", "right")], 401),
            (&[], 401),
        ] {
            assert_eq!(status(&guard, Method::POST, pairs), expect, "{pairs:?}");
        }
    }
}
