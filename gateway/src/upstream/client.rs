//! The HTTP client towards upstreams and neurons.

use std::time::Duration;

use crate::config::CONNECT_TIMEOUT;

/// One client for all requests: no proxy, no redirect, no retry, since a request that was sent once
/// may have been worked on.
pub(crate) fn client(pool_idle: Duration) -> reqwest::Result<reqwest::Client> {
    // whoever comes first in the process installs it; the provider is the same
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .tcp_nodelay(true)
        .http1_only()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(pool_idle)
        .user_agent(concat!("seatbelt/", env!("CARGO_PKG_VERSION")))
        .build()
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn a_redirect_is_an_answer_and_no_way_on() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let read = peer.read(&mut head).await.unwrap();
            let answer = b"HTTP/1.1 307 T\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n";
            peer.write_all(answer).await.unwrap();
            String::from_utf8_lossy(&head[..read]).into_owned()
        });
        let client = client(Duration::from_secs(1)).unwrap();
        let answer = client.post(url).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 307);
        let sent = server.await.unwrap().to_ascii_lowercase();
        assert!(sent.contains("user-agent: seatbelt/"), "{sent}");
        assert!(!sent.contains("referer"), "{sent}");
    }
}
