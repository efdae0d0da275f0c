//! Server-sent events.

/// Reads events out of bytes as they arrive.
#[derive(Debug, Default)]
pub(super) struct SseReader {
    /// The line that is not complete yet.
    line: Vec<u8>,
    /// Whether the last byte was a carriage return, so that a line feed belongs to it.
    after_return: bool,
    event: String,
    data: Option<String>,
}

/// An event: its name, and its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SseEvent {
    pub(super) name: String,
    pub(super) data: String,
}

impl SseReader {
    /// Takes bytes, and returns the events that they complete.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Vec<SseEvent> {
        let mut events = Vec::new();
        for byte in bytes {
            let was_return = std::mem::replace(&mut self.after_return, *byte == b'\r');
            match byte {
                b'\n' if was_return => {}
                b'\r' | b'\n' => {
                    let line = std::mem::take(&mut self.line);
                    events.extend(self.end_line(&String::from_utf8_lossy(&line)));
                }
                byte => self.line.push(*byte),
            }
        }
        events
    }

    fn end_line(&mut self, line: &str) -> Option<SseEvent> {
        if line.is_empty() {
            let name = std::mem::take(&mut self.event);
            let data = self.data.take();
            return (data.is_some() || !name.is_empty())
                .then(|| SseEvent { name, data: data.unwrap_or_default() });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match (field, &mut self.data) {
            ("event", _) => value.clone_into(&mut self.event),
            ("data", Some(data)) => {
                data.push('\n');
                data.push_str(value);
            }
            ("data", data @ None) => *data = Some(value.to_owned()),
            // A comment keeps the connection open; other fields are for browsers.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(text: &str, chunk: usize) -> Vec<(String, String)> {
        let mut reader = SseReader::default();
        let parts = text.as_bytes().chunks(chunk);
        let events = parts.flat_map(|part| reader.take(part)).collect::<Vec<_>>();
        events.into_iter().map(|SseEvent { name, data }| (name, data)).collect()
    }

    #[test]
    fn events_are_read_however_their_bytes_arrive() {
        let text = "event: task_id\r\ndata: 90d5\r\n\r\n: ping\r\n\r\nevent: chunk\ndata:  é\n\nevent: end\r\ndata: a\r\ndata: b\r\n\r\nevent: end\r\ndata: \r\n\r\nevent: cut";
        let own = |(name, data): (&str, &str)| (name.to_owned(), data.to_owned());
        let expected =
            [("task_id", "90d5"), ("chunk", " é"), ("end", "a\nb"), ("end", "")].map(own);
        for chunk in [1, 2, 3, 7, 1_000] {
            assert_eq!(events(text, chunk), expected, "chunks of {chunk}");
        }
    }
}
