//! The host that a request is for: one strict reading of the `Host` header and of a target that names a host itself (RFC 9112,
//! 3.2; RFC 3986, 3.2.2), on every address. It says what was asked for, and nothing of whether that is answered.
//!
//! A client that a browser, a resolver and this server read in three ways can be made to believe that it talks to somebody
//! else. So what can be read in two ways is refused: numbers that some take for an address, percent signs, user names, more
//! than one header, a header that contradicts the target.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hyper::header::{HOST, HeaderMap};
use hyper::{Uri, Version};

/// Of a name (RFC 1035, 2.3.4), and of one part of it.
const NAME_CHARS_MAX: usize = 253;
const LABEL_CHARS_MAX: usize = 63;

/// Whom a request names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Host {
    /// An address: no name server can lead it elsewhere. IPv4 in IPv6's clothes is IPv4.
    Address(IpAddr),
    /// A name in lower case, without the dot that may end it.
    Name(String),
}

/// A host and a port, where one is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Authority {
    pub(super) host: Host,
    pub(super) port: Option<u16>,
}

/// The authority that a request is for; nothing where it names none, as only old clients may.
///
/// # Errors
/// What is wrong with it, in the words of Go's server.
pub(super) fn asked(version: Version, headers: &HeaderMap, target: &Uri) -> Result<Option<Authority>, &'static str> {
    let mut given = headers.get_all(HOST).iter();
    let header = match (given.next(), given.next()) {
        (Some(_), Some(_)) => return Err("too many Host headers"),
        (None, _) if version >= Version::HTTP_11 => return Err("missing required Host header"),
        (None, _) => None,
        (Some(value), None) => Some(value.to_str().map_err(|_| MALFORMED)?).filter(|text| !text.is_empty()),
    };
    let header = header.map(Authority::parse).transpose()?;
    let Some(named) = target.authority() else { return Ok(header) };
    let named = Authority::parse(named.as_str())?;
    let default = if target.scheme_str() == Some("https") { 443 } else { 80 };
    let same = |one: &Authority, other: &Authority| {
        one.host == other.host && one.port.unwrap_or(default) == other.port.unwrap_or(default)
    };
    match header {
        Some(header) if !same(&header, &named) => Err("the Host header and the target name different hosts"),
        _ => Ok(Some(named)),
    }
}

const MALFORMED: &str = "malformed Host header";

impl Authority {
    /// A host, and a port behind a colon.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        Self::read(text).ok_or(MALFORMED)
    }

    fn read(text: &str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, rest) = rest.split_once(']')?;
                let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) };
                (Host::Address(ipv6(address)?), port)
            }
            None => match text.split_once(':') {
                Some((host, port)) => (Host::read(host)?, Some(port)),
                None => (Host::read(text)?, None),
            },
        };
        let is_number = |port: &str| port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = match port {
            None | Some("") => None,
            Some(port) if is_number(port) => Some(port.parse().ok()?),
            Some(_) => return None,
        };
        Some(Self { host, port })
    }
}

impl Host {
    /// A name or an IPv4 address.
    fn read(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Some(Self::Address(address.into()));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let is_label = |label: &str| {
            (1..=LABEL_CHARS_MAX).contains(&label.len())
                && label.bytes().all(is_plain)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let last = name.rsplit('.').next()?.to_ascii_lowercase();
        // What ends in a number is an address to some (`127.1`, `2130706433`, `0x7f.1`) and a name to others.
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_odd = is_number(&last) || last.strip_prefix("0x").is_some_and(is_hex);
        let is_name = name.len() <= NAME_CHARS_MAX && name.split('.').all(is_label) && !is_odd;
        is_name.then(|| Self::Name(name.to_ascii_lowercase()))
    }
}

/// An address; one that holds on one link only may name the link (RFC 6874), which says nothing to anybody else.
fn ipv6(text: &str) -> Option<IpAddr> {
    let (address, zone) = match text.split_once('%') {
        Some((address, zone)) => (address, Some(zone.strip_prefix("25").unwrap_or(zone))),
        None => (text, None),
    };
    let address: Ipv6Addr = address.parse().ok()?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_zone = |zone: &str| address.is_unicast_link_local() && !zone.is_empty() && zone.bytes().all(is_plain);
    zone.is_none_or(is_zone).then(|| IpAddr::V6(address).to_canonical())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn read(text: &str) -> Option<String> {
        let Authority { host, port } = Authority::parse(text).ok()?;
        let host = match host {
            Host::Address(address) => address.to_string(),
            Host::Name(name) => format!("name {name}"),
        };
        Some(port.map_or(host.clone(), |port| format!("{host} {port}")))
    }

    #[test]
    fn a_host_is_read_in_one_way_or_not_at_all() {
        let long = format!("{}.example", "a".repeat(63));
        let longest = [&long[..63]; 4].join(".")[..253].to_owned();
        for (text, expect) in [
            ("localhost", Some("name localhost")),
            ("LocalHost:11434", Some("name localhost 11434")),
            ("localhost.", Some("name localhost")),
            ("localhost.:80", Some("name localhost 80")),
            ("localhost:", Some("name localhost")),
            ("ollama:11434", Some("name ollama 11434")),
            ("my_ollama-2.svc.cluster.local", Some("name my_ollama-2.svc.cluster.local")),
            ("xn--bcher-kva.example", Some("name xn--bcher-kva.example")),
            ("3com.example", Some("name 3com.example")),
            ("127.0.0.1.evil.example", Some("name 127.0.0.1.evil.example")),
            ("0x7f.1.example", Some("name 0x7f.1.example")),
            (&long, Some(&format!("name {long}"))),
            (&longest, Some(&format!("name {longest}"))),
            ("127.0.0.1", Some("127.0.0.1")),
            ("127.0.0.1:65535", Some("127.0.0.1 65535")),
            ("8.8.8.8", Some("8.8.8.8")),
            ("[::1]:11434", Some("::1 11434")),
            ("[::1]", Some("::1")),
            ("[0:0:0:0:0:0:0:1]", Some("::1")),
            ("[::ffff:127.0.0.1]", Some("127.0.0.1")),
            ("[::ffff:7f00:1]:80", Some("127.0.0.1 80")),
            ("[fe80::1%25eth0]:80", Some("fe80::1 80")),
            ("[fe80::1%en0]", Some("fe80::1")),
            // In two ways, or in none.
            ("", None),
            (":80", None),
            (".", None),
            (".local", None),
            ("localhost..", None),
            ("a..b", None),
            ("-a", None),
            ("a-", None),
            ("a-.b", None),
            (" localhost", None),
            ("localhost ", None),
            ("local host", None),
            ("localhost\t", None),
            ("127.1", None),
            ("127.0.1", None),
            ("2130706433", None),
            ("0x7f000001", None),
            ("0x7f.1", None),
            ("0x", None),
            ("0177.0.0.1", None),
            ("127.0.0.1.", None),
            ("127.0.0.256", None),
            ("1.2.3.4.5", None),
            ("evil.0x7f", None),
            ("::1", None),
            ("::1:80", None),
            ("[::1", None),
            ("::1]", None),
            ("[::1]80", None),
            ("[::1]:", Some("::1")),
            ("[::1]:x", None),
            ("[127.0.0.1]", None),
            ("[localhost]", None),
            ("[]", None),
            ("[v1.x]", None),
            ("[::1%25lo]", None),
            ("[fe80::1%]", None),
            ("[fe80::1%25]", None),
            ("[fe80::1%25a b]", None),
            ("localhost:80:80", None),
            ("localhost:80x", None),
            ("localhost:+80", None),
            ("localhost:-1", None),
            ("localhost:65536", None),
            ("localhost:000080", None),
            ("user@localhost", None),
            ("localhost:80@evil.example", None),
            ("evil.example:@localhost", None),
            ("localhost%00.evil.example", None),
            ("%6cocalhost", None),
            ("localhost/", None),
            ("localhost/evil", None),
            ("localhost?", None),
            ("localhost#", None),
            ("http://localhost", None),
            ("localhost,evil.example", None),
            ("localhost;evil", None),
            ("b\u{fc}cher.example", None),
            ("\u{ff11}27.0.0.1", None),
            ("localhost\\evil", None),
            ("*", None),
            (&format!("{}b", "a".repeat(63)), None),
            (&format!("{longest}a"), None),
        ] {
            assert_eq!(read(text).as_deref(), expect, "{text:?}");
        }
    }

    #[test]
    fn a_request_names_one_host_in_one_way() {
        let ask = |version, hosts: &[&str], target: &str| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(HOST, HeaderValue::from_bytes(host.as_bytes()).unwrap());
            }
            let authority = asked(version, &headers, &target.parse().unwrap());
            authority.map(|authority| authority.map(|authority| (authority.host, authority.port)))
        };
        let named = |name: &str, port| Ok(Some((Host::Name(name.to_owned()), port)));
        let (old, new) = (Version::HTTP_10, Version::HTTP_11);
        assert_eq!(ask(old, &[], "/"), Ok(None));
        assert_eq!(ask(new, &[""], "/"), Ok(None));
        assert_eq!(ask(new, &["a:1"], "/"), named("a", Some(1)));
        assert_eq!(ask(new, &["A"], "http://a:80/"), named("a", Some(80)));
        assert_eq!(ask(new, &["a:443"], "https://a/"), named("a", None));
        assert_eq!(ask(old, &[], "http://a/"), named("a", None));
        assert_eq!(ask(new, &[""], "http://a/"), named("a", None));
        assert_eq!(ask(new, &["a:1"], "*"), named("a", Some(1)));
        for (version, hosts, target) in [
            (new, &[][..], "/"),
            (new, &[], "http://a/"),
            (new, &["a", "a"], "/"),
            (old, &["a", "b"], "/"),
            (new, &["", "a"], "/"),
            (new, &["localhost"], "http://evil.example/"),
            (new, &["localhost:1"], "http://localhost:2/"),
            (new, &["localhost"], "https://localhost:80/"),
            (new, &["localhost"], "http://localhost@evil.example/"),
            (new, &["localhost"], "http://evil@localhost/"),
            (new, &["127.0.0.1"], "http://2130706433/"),
            (new, &["localhost"], "evil.example:443"),
            (new, &["b\u{fc}cher"], "/"),
        ] {
            assert!(ask(version, hosts, target).is_err(), "{version:?} {hosts:?} {target}");
        }
    }
}
