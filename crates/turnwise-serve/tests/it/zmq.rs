//! Frames of `ZeroMQ`, as libzmq writes and reads them.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Greets as a socket of a kind, and checks that the other end is of another.
pub(crate) async fn greet(stream: &mut TcpStream, own: &str, other: &str) {
    let mut greeting = [0; 64];
    (greeting[0], greeting[9], greeting[10], greeting[11]) = (0xFF, 0x7F, 3, 1);
    greeting[12..16].copy_from_slice(b"NULL");
    stream.write_all(&greeting).await.unwrap();
    let n = own.len() as u8;
    let ready = [
        b"\x05READY\x0bSocket-Type\0\0\0".as_slice(),
        &[n],
        own.as_bytes(),
        b"\x08Identity\0\0\0\0",
    ]
    .concat();
    stream.write_all(&[&[4, ready.len() as u8], ready.as_slice()].concat()).await.unwrap();
    let mut theirs = [0; 64];
    stream.read_exact(&mut theirs).await.unwrap();
    assert_eq!(
        (theirs[0], theirs[9], theirs[10], &theirs[12..17]),
        (0xFF, 0x7F, 3, b"NULL\0".as_slice())
    );
    let ready =
        [b"\x05READY\x0bSocket-Type\0\0\0".as_slice(), &[other.len() as u8], other.as_bytes()]
            .concat();
    assert_eq!(frame(stream).await.unwrap(), (4, ready));
}

/// Sends a message; all of its frames have long lengths.
pub(crate) async fn send(stream: &mut TcpStream, frames: &[&[u8]]) {
    for (n, body) in frames.iter().enumerate() {
        let more = u8::from(n + 1 < frames.len());
        let head = [&[more | 2], (body.len() as u64).to_be_bytes().as_slice()].concat();
        // A peer that found something wrong is gone.
        let _ = stream.write_all(&[&head, *body].concat()).await;
    }
}

/// Reads a frame: its flags and its body.
pub(crate) async fn frame(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let flags = stream.read_u8().await.ok()?;
    let n = if flags & 2 == 0 {
        u64::from(stream.read_u8().await.ok()?)
    } else {
        stream.read_u64().await.ok()?
    };
    let mut body = vec![0; usize::try_from(n).unwrap()];
    stream.read_exact(&mut body).await.ok()?;
    Some((flags, body))
}

/// Reads a message; its commands are left out.
pub(crate) async fn message(stream: &mut TcpStream) -> Option<Vec<Vec<u8>>> {
    let mut frames = Vec::new();
    loop {
        let (flags, body) = frame(stream).await?;
        if flags & 4 != 0 {
            continue;
        }
        frames.push(body);
        if flags & 1 == 0 {
            return Some(frames);
        }
    }
}
