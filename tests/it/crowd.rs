//! Row 50 with real sockets: what one address may have open, and what becomes of the rest.

use std::io;
use std::net::SocketAddr;

use ollmlx_supervisor::http::{Crowd, Exempt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::door::Ground;
use crate::house::PATIENCE;

const MOST: usize = 3;

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

/// Asks for this path, and for more afterwards; `None` where the connection is closed.
async fn ask(stream: &mut TcpStream, path: &str) -> Option<String> {
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let exchange = async {
        stream.write_all(head.as_bytes()).await?;
        let mut heard = vec![0; 1 << 20];
        let mut count = 0;
        // A whole answer: its head, and as many bytes as that says.
        loop {
            match stream.read(&mut heard[count..]).await? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                more => count += more,
            }
            let text = String::from_utf8_lossy(&heard[..count]).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
            if body.len() >= length.parse().unwrap() {
                return Ok(text);
            }
        }
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("an answer or an end").ok()
}

#[tokio::test]
async fn row_50_what_one_address_has_too_much_is_closed_and_the_rest_is_served() {
    let ground = Ground::new();
    let door = ground.open_for(None, Crowd::new(Exempt::Nobody, MOST)).await;
    let mut kept = Vec::new();
    for _ in 0..MOST {
        kept.push(connect(door.address).await);
        // Accepted for sure.
        assert!(ask(kept.last_mut().unwrap(), "/healthz").await.unwrap().starts_with("HTTP/1.1 200 "));
    }
    let mut last = connect(door.address).await;
    assert_eq!(ask(&mut last, "/healthz").await, None, "one past the limit");
    let metrics = ask(&mut kept[0], "/metrics").await.expect("those that are open are served");
    assert!(metrics.contains("\nollmlx_connections_refused_total 1\n"), "{metrics}");
    // A place is free as soon as the server sees that its holder has gone.
    drop(kept.pop());
    let served = async { while ask(&mut connect(door.address).await, "/healthz").await.is_none() {} };
    tokio::time::timeout(PATIENCE, served).await.expect("it is served");
    door.close().await;
}

#[tokio::test]
async fn row_50_programs_of_this_machine_may_have_any_number() {
    let ground = Ground::new();
    let door = ground.open_for(None, Crowd::new(Exempt::Loopback, 0)).await;
    assert!(ask(&mut connect(door.address).await, "/healthz").await.is_some());
    door.close().await;
}
