//! Web pages that may call this server, by the `Origin` of their requests (RFC 6454, 6.1): a scheme, a host and a port.
//!
//! An origin is read as strictly as a host is. Those of apps (`tauri://localhost`, `vscode-webview://…`) have a scheme that no
//! web page can have, and whatever their maker wrote behind it.

use hyper::header::{HeaderMap, ORIGIN};

use super::host::Authority;

const APP_SCHEMES: [&str; 5] = ["app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*"];
const LOCAL_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "0.0.0.0"];

/// Where a request comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PageOrigin {
    /// No page, or a page of this server itself.
    Own,
    /// A page or an app of others, as it was written; `null` is one that its browser doesn't name.
    Other(String),
    /// Nothing that could be allowed by its name: several, or no origin at all.
    Unnamed,
}

impl PageOrigin {
    /// Of a request for this authority.
    pub(super) fn of(headers: &HeaderMap, asked: Option<&Authority>) -> Self {
        let mut given = headers.get_all(ORIGIN).iter();
        let text = match (given.next(), given.next()) {
            (None, _) => return Self::Own,
            (Some(value), None) if value == "null" => return Self::Other("null".to_owned()),
            (Some(value), None) => value.to_str().ok(),
            (Some(_), Some(_)) => None,
        };
        let Some(OriginParts { text, page }) = text.and_then(parts) else { return Self::Unnamed };
        match (page, asked) {
            (Some((default, page)), Some(asked))
                if page.host == asked.host && page.port.unwrap_or(default) == asked.port.unwrap_or(default) =>
            {
                Self::Own
            }
            _ => Self::Other(text.to_owned()),
        }
    }
}

struct OriginParts<'a> {
    text: &'a str,
    /// Of a web page: the port that its scheme implies, and whose page it is.
    page: Option<(u16, Authority)>,
}

fn parts(text: &str) -> Option<OriginParts<'_>> {
    let (scheme, rest) = text.split_once("://")?;
    let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    if !scheme.starts_with(|first: char| first.is_ascii_alphabetic()) || !scheme.bytes().all(is_scheme) {
        return None;
    }
    let default = match scheme.to_ascii_lowercase().as_str() {
        "http" => 80,
        "https" => 443,
        // Nobody but the app says what this means; a list of origins it is not.
        _ => {
            let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b',' | b'@' | b'\\' | b'%');
            return rest.bytes().all(is_plain).then_some(OriginParts { text, page: None });
        }
    };
    Authority::parse(rest).ok().map(|page| OriginParts { text, page: Some((default, page)) })
}

/// Those that are allowed.
#[derive(Debug)]
pub(super) struct AllowedOrigins {
    any: bool,
    origins: Vec<String>,
}

impl AllowedOrigins {
    /// Those of the settings, this machine's own, and apps.
    pub(super) fn new(further: &[String]) -> Self {
        let mut origins = further.to_vec();
        for host in LOCAL_HOSTS {
            for scheme in ["http", "https"] {
                origins.push(format!("{scheme}://{host}"));
                origins.push(format!("{scheme}://{host}:*"));
            }
        }
        origins.extend(APP_SCHEMES.iter().map(|&scheme| scheme.to_owned()));
        Self { any: further.iter().any(|origin| origin == "*"), origins }
    }

    /// Whether all are.
    pub(super) fn any(&self) -> bool {
        self.any
    }

    /// Whether this one is.
    pub(super) fn has(&self, origin: &str) -> bool {
        self.any || self.origins.iter().any(|allowed| matches(allowed, origin))
    }
}

/// One `*` per entry; `:*` is digits only, so that it can't be made to span a host name.
fn matches(allowed: &str, origin: &str) -> bool {
    let Some((before, after)) = allowed.split_once('*') else { return allowed.eq_ignore_ascii_case(origin) };
    let fits = origin.len() >= before.len() + after.len()
        && origin.is_char_boundary(before.len())
        && origin[..before.len()].eq_ignore_ascii_case(before)
        && origin.is_char_boundary(origin.len() - after.len())
        && origin[origin.len() - after.len()..].eq_ignore_ascii_case(after);
    if !fits {
        return false;
    }
    let between = &origin[before.len()..origin.len() - after.len()];
    !before.ends_with(':') || before.ends_with("//") || between.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn of(origins: &[&str], host: &str) -> PageOrigin {
        let mut headers = HeaderMap::new();
        for origin in origins {
            headers.append(ORIGIN, HeaderValue::from_bytes(origin.as_bytes()).unwrap());
        }
        PageOrigin::of(&headers, Authority::parse(host).ok().as_ref())
    }

    #[test]
    fn an_origin_is_read_in_one_way_or_not_at_all() {
        assert_eq!(of(&[], "a"), PageOrigin::Own);
        for own in ["http://a:80", "HTTP://A", "https://a", "http://a."] {
            assert_eq!(of(&[own], "a"), PageOrigin::Own, "{own}");
        }
        assert_eq!(of(&["http://a:11434"], "a:11434"), PageOrigin::Own);
        for other in [
            "http://a:81",
            "https://evil.example",
            "http://[::1]:80",
            "app://x",
            "file://",
            "file:///",
            "tauri://localhost",
            "vscode-webview://0a1b-2c",
            "vscode-file://vscode-app",
            "chrome-extension://abcdef",
            "moz-extension://0-1-2",
        ] {
            assert_eq!(of(&[other], "a"), PageOrigin::Other(other.to_owned()), "{other}");
        }
        for unnamed in [
            "",
            "NULL",
            "localhost",
            "http://",
            "http:///",
            "http://localhost/",
            "http://localhost/x",
            "http://localhost:1@evil.example",
            "http://evil@localhost",
            "http://localhost:80,http://evil.example",
            "http://localhost http://evil.example",
            "http://localhost%00.evil",
            "http://localhost:80x",
            "http://localhost?x",
            "http://127.1",
            "http://::1",
            "http://[::1].evil.example",
            "app://x,http://evil.example",
            "app://x http://evil.example",
            "app://user@x",
            "://x",
            "1http://x",
            "http//x",
            "b\u{fc}cher://x",
        ] {
            assert_eq!(of(&[unnamed], "localhost"), PageOrigin::Unnamed, "{unnamed}");
        }
        assert_eq!(of(&["http://localhost", "http://evil.example"], "localhost"), PageOrigin::Unnamed);
        assert_eq!(of(&["http://localhost", "http://localhost"], "localhost"), PageOrigin::Unnamed);
    }

    #[test]
    fn s09_this_machine_s_own_and_apps_are_allowed_and_others_where_the_settings_say_so() {
        let allowed = AllowedOrigins::new(&["https://*.example.com".to_owned(), "chrome-extension://*".to_owned()]);
        for fine in [
            "http://localhost",
            "http://localhost:3000",
            "https://127.0.0.1:8443",
            "http://0.0.0.0",
            "HTTP://LOCALHOST:1",
            "app://obsidian.md",
            "file://",
            "tauri://localhost",
            "vscode-webview://abc",
            "vscode-file://vscode-app",
            "https://chat.example.com",
            "https://CHAT.EXAMPLE.COM",
            "chrome-extension://abc",
        ] {
            assert!(allowed.has(fine), "{fine}");
        }
        for evil in [
            "null",
            "https://evil.example",
            "http://localhost.evil.example",
            "http://127.0.0.1.evil.example",
            "http://localhost:1.evil.example",
            "http://chat.example.com",
            "https://example.com",
            "https://chat.example.com.evil.example",
            "moz-extension://abc",
            "http://192.168.1.5",
        ] {
            assert!(!allowed.has(evil), "{evil}");
        }
        assert!(!allowed.any() && AllowedOrigins::new(&["*".to_owned()]).has("https://evil.example"));
    }
}
