//! The part of the wire protocol of `ZeroMQ` (ZMTP 3) that a ROUTER and a DEALER need to speak with each other by TCP.
//!
//! No crate serves here: `zeromq` 0.7 reserves as many bytes as a peer announces, so that nine bytes end the process, and
//! `zmq` is a binding to C++.

use std::io::{self, Error, ErrorKind};
use std::net::IpAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The largest frame, in bytes.
pub(crate) const MAX_FRAME: u64 = 16 << 20;

/// The most frames of a message.
const MAX_FRAMES: usize = 8;

/// A message: its frames.
pub(crate) type ZmqMessage = Vec<Vec<u8>>;

/// A kind of socket, at one end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ZmqSocket {
    /// A server of many clients.
    Router,
    /// A client.
    Dealer,
}

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// A frame, or a command of the protocol itself.
struct ZmqFrame {
    flags: u8,
    body: Vec<u8>,
}

impl ZmqSocket {
    fn name(self) -> &'static str {
        match self {
            Self::Router => "ROUTER",
            Self::Dealer => "DEALER",
        }
    }

    /// Returns the kinds that may be at the other end, as they call themselves.
    fn peers(self) -> &'static [&'static str] {
        match self {
            Self::Router => &["DEALER", "REQ"],
            Self::Dealer => &["ROUTER"],
        }
    }
}

/// Greets a peer as a socket of this kind, without authentication; the peer's socket has to be one that it may speak with.
pub(crate) async fn greet(
    read: &mut (impl AsyncRead + Unpin),
    write: &mut (impl AsyncWrite + Unpin),
    own: ZmqSocket,
) -> io::Result<()> {
    write.write_all(&greeting()).await?;
    let mut theirs = [0; 64];
    read.read_exact(&mut theirs).await?;
    let [major, mechanism @ ..] = &theirs[10..32] else { return Err(wrong("a short greeting")) };
    if theirs[0] != 0xFF || theirs[9] != 0x7F || *major < 3 {
        return Err(wrong("no greeting of ZMTP 3"));
    }
    if !mechanism[1..].starts_with(b"NULL\0") {
        return Err(wrong("another mechanism of authentication than NULL"));
    }
    let ready = [b"\x05READY".as_slice(), &property("Socket-Type", own.name().as_bytes())].concat();
    write.write_all(&frame(COMMAND, &ready)).await?;
    let theirs = read_frame(read).await?;
    let properties = theirs.body.strip_prefix(b"\x05READY".as_slice());
    let Some(properties) = properties.filter(|_| theirs.flags & COMMAND != 0) else {
        return Err(wrong("no READY"));
    };
    let socket = socket_type(properties).unwrap_or_default();
    if own.peers().iter().any(|peer| peer.as_bytes() == socket) {
        Ok(())
    } else {
        Err(wrong(&format!("the type of a socket that is not {}", own.peers().join(" or "))))
    }
}

/// Reads a message. Commands that come before it or between its frames go to `commanded`.
pub(crate) async fn read_message(
    read: &mut (impl AsyncRead + Unpin),
    commanded: impl Fn(&[u8]),
) -> io::Result<ZmqMessage> {
    let mut frames = Vec::new();
    loop {
        let ZmqFrame { flags, body } = read_frame(read).await?;
        if flags & COMMAND != 0 {
            commanded(&body);
            continue;
        }
        frames.push(body);
        if flags & MORE == 0 {
            return Ok(frames);
        }
        if frames.len() == MAX_FRAMES {
            return Err(wrong("a message of too many frames"));
        }
    }
}

/// Returns the answer to a command, as bytes, if it is a heartbeat.
pub(crate) fn pong_to(command: &[u8]) -> Option<Vec<u8>> {
    // Two bytes of time to live, and a context that goes back.
    let context = command.strip_prefix(b"\x04PING".as_slice())?;
    let context = context.get(2..).unwrap_or_default();
    Some(frame(COMMAND, &[b"\x04PONG", context].concat()))
}

/// Returns a heartbeat as bytes, which asks for an answer and names no time to live.
pub(crate) fn ping() -> Vec<u8> {
    frame(COMMAND, b"\x04PING\0\0")
}

/// Returns whether an address is of this machine or of a private network: `ZeroMQ` has no authentication here.
pub(crate) fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback() || address.is_private(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unique_local(),
    }
}

/// Writes a message as bytes.
pub(crate) fn message(frames: &[&[u8]]) -> Vec<u8> {
    let last = frames.len().saturating_sub(1);
    let each = frames.iter().enumerate();
    each.flat_map(|(n, body)| frame(if n < last { MORE } else { 0 }, body)).collect()
}

async fn read_frame(read: &mut (impl AsyncRead + Unpin)) -> io::Result<ZmqFrame> {
    let flags = read.read_u8().await?;
    let n =
        if flags & LONG == 0 { u64::from(read.read_u8().await?) } else { read.read_u64().await? };
    if n > MAX_FRAME {
        return Err(wrong("a frame that is too large"));
    }
    // Memory grows with what arrives, and not with what is announced.
    let mut body = Vec::new();
    read.take(n).read_to_end(&mut body).await?;
    if body.len() as u64 == n {
        Ok(ZmqFrame { flags, body })
    } else {
        Err(ErrorKind::UnexpectedEof.into())
    }
}

fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    match u8::try_from(body.len()) {
        Ok(n) => [&[flags, n], body].concat(),
        Err(_) => [&[flags | LONG], (body.len() as u64).to_be_bytes().as_slice(), body].concat(),
    }
}

/// Returns version 3.0, with the mechanism NULL.
fn greeting() -> [u8; 64] {
    let mut greeting = [0; 64];
    greeting[0] = 0xFF;
    greeting[9] = 0x7F;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

fn property(name: &str, value: &[u8]) -> Vec<u8> {
    let (n_name, n_value) = (name.len() as u8, value.len() as u32);
    [&[n_name], name.as_bytes(), &n_value.to_be_bytes(), value].concat()
}

/// Returns the kind of socket that properties name.
fn socket_type(mut properties: &[u8]) -> Option<Vec<u8>> {
    loop {
        let (n_name, rest) = properties.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(*n_name))?;
        let (n_value, rest) = rest.split_first_chunk::<4>()?;
        let n_value = usize::try_from(u32::from_be_bytes(*n_value)).ok()?;
        let (value, rest) = rest.split_at_checked(n_value)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            return Some(value.to_owned());
        }
        properties = rest;
    }
}

fn wrong(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("the peer sent {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a socket says first.
    fn first_words(socket: &[u8]) -> Vec<u8> {
        let properties = [property("Identity", b""), property("Socket-Type", socket)].concat();
        let ready = [b"\x05READY".as_slice(), &properties].concat();
        [greeting().as_slice(), &frame(COMMAND, &ready)].concat()
    }

    async fn greeted(bytes: &[u8], own: ZmqSocket) -> io::Result<Vec<u8>> {
        let mut said = Vec::new();
        greet(&mut &*bytes, &mut said, own).await.map(|()| said)
    }

    #[tokio::test]
    async fn dealers_are_greeted_and_others_are_not() {
        let said = greeted(&first_words(b"DEALER"), ZmqSocket::Router).await.unwrap();
        // The two understand each other.
        assert!(greeted(&said, ZmqSocket::Dealer).await.is_ok());
        let (mut old, mut secured) = (first_words(b"DEALER"), first_words(b"DEALER"));
        old[10] = 2;
        secured[12..17].copy_from_slice(b"CURVE");
        let cut = first_words(b"DEALER")[..70].to_vec();
        let http =
            b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: curl\r\nAccept: everything\r\n\r\n"
                .to_vec();
        for wrong in [first_words(b"SUB"), old, secured, cut, http, Vec::new()] {
            assert!(greeted(&wrong, ZmqSocket::Router).await.is_err());
        }
        for wrong in ["DEALER", "PUB", "REP"] {
            let first = first_words(wrong.as_bytes());
            let error = greeted(&first, ZmqSocket::Dealer).await.unwrap_err();
            assert!(error.to_string().ends_with("that is not ROUTER"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_message_is_read_as_it_was_written() {
        let long = vec![7; 70_000];
        let frames: [&[u8]; 4] = [b"id", b"", &[1; 255], &long];
        let bytes = message(&frames);
        let read = read_message(&mut bytes.as_slice(), |_| panic!("no ping")).await.unwrap();
        assert_eq!(read, frames);
    }

    #[tokio::test]
    async fn a_ping_is_answered_and_the_message_follows() {
        let ping = frame(COMMAND, b"\x04PING\0\x0acontext");
        let bytes = [ping, message(&[b"id"])].concat();
        let answered = std::cell::RefCell::new(Vec::new());
        let heard = |command: &[u8]| answered.borrow_mut().extend(pong_to(command));
        let read = read_message(&mut bytes.as_slice(), heard).await;
        assert_eq!(read.unwrap(), [b"id"]);
        assert_eq!(*answered.borrow(), [frame(COMMAND, b"\x04PONGcontext")]);
    }

    #[tokio::test]
    async fn what_a_peer_announces_is_not_reserved() {
        let huge = [&[LONG], u64::MAX.to_be_bytes().as_slice()].concat();
        let many: Vec<u8> = (0..=MAX_FRAMES).flat_map(|_| frame(MORE, b"a")).collect();
        let announced = [&[LONG], MAX_FRAME.to_be_bytes().as_slice(), b"few"].concat();
        for bytes in [huge, many, announced, vec![0], vec![LONG, 0], Vec::new()] {
            assert!(read_message(&mut bytes.as_slice(), |_| {}).await.is_err());
        }
    }

    #[tokio::test]
    async fn an_own_ping_has_no_time_to_live() {
        let bytes = [ping(), message(&[b"id"])].concat();
        let heard = |command: &[u8]| {
            assert_eq!(pong_to(command), Some(frame(COMMAND, b"\x04PONG")));
        };
        assert_eq!(read_message(&mut bytes.as_slice(), heard).await.unwrap(), [b"id"]);
        assert_eq!(pong_to(b"\x04PONGcontext"), None);
    }

    #[test]
    fn strangers_cannot_reach_an_address() {
        for address in ["127.0.0.1", "10.1.2.3", "192.168.0.1", "::1", "fd00::1"] {
            assert!(is_private(address.parse().unwrap()), "{address}");
        }
        for address in ["0.0.0.0", "::", "8.8.8.8", "2001:db8::1"] {
            assert!(!is_private(address.parse().unwrap()), "{address}");
        }
    }
}
