//! Just enough of docker's HTTP API over its unix socket.
//!
//! The one rule: an answer is read as a stream with a bound; whatever a container wrote, the agent never holds more of it
//! than one buffer.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const SOCKET: &str = "/run/docker.sock";
/// The same as docker's client is told of it.
pub const DOCKER_HOST: &str = "unix:///run/docker.sock";
/// Longest answer that is read as a whole.
const MAX_BODY: u64 = 8 * 1024 * 1024;
const MAX_HEAD: u64 = 64 * 1024;

/// An answer whose body has not been read yet.
pub struct Answer {
    pub status: u16,
    /// Media type, in lower case.
    pub content_type: String,
    pub body: Body,
}

/// Asks, and waits for bytes of the answer no longer than `patience` each time.
pub fn request(method: &str, path: &str, patience: Duration) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(SOCKET)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")?;
    read_head(stream)
}

/// Sends the file as the body of a POST, and gives docker's last words about it.
pub fn upload(path: &str, mut file: File, patience: Duration) -> io::Result<String> {
    let mut stream = UnixStream::connect(SOCKET)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let length = file.metadata()?.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Type: application/x-tar\r\nContent-Length: {length}\r\n\r\n"
    )?;
    io::copy(&mut file, &mut stream)?;
    let answer = read_head(stream)?;
    match answer.status {
        200 => answer.text(),
        _ => Err(io::Error::other(answer.error_message())),
    }
}

impl Answer {
    /// The whole body, up to a bound.
    pub fn text(self) -> io::Result<String> {
        let mut text = String::new();
        self.body.take(MAX_BODY).read_to_string(&mut text)?;
        Ok(text)
    }

    /// Docker's own words in an error answer.
    pub fn error_message(self) -> String {
        let status = self.status;
        let text = self.text().unwrap_or_default();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        value["message"].as_str().map_or_else(|| format!("docker answered {status}"), str::to_owned)
    }
}

fn read_head(stream: UnixStream) -> io::Result<Answer> {
    let broken = || io::Error::other("an answer that is not HTTP");
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    let mut head = (&mut reader).take(MAX_HEAD);
    head.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(broken)?;
    let (mut content_type, mut framing) = (String::new(), Framing::UntilEnd);
    loop {
        line.clear();
        if head.read_line(&mut line)? == 0 {
            return Err(broken());
        }
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        let value = value.trim().to_ascii_lowercase();
        match name.to_ascii_lowercase().as_str() {
            "content-type" => content_type = value,
            "content-length" => framing = Framing::Length(value.parse().map_err(|_| broken())?),
            "transfer-encoding" if value == "chunked" => framing = Framing::Chunked { left: 0, first: true },
            _ => {}
        }
    }
    Ok(Answer { status, content_type, body: Body { reader, framing } })
}

enum Framing {
    UntilEnd,
    Length(u64),
    Chunked { left: u64, first: bool },
}

/// The bytes of an answer, without its framing.
pub struct Body {
    reader: BufReader<UnixStream>,
    framing: Framing,
}

impl Body {
    /// From now on silence is no error.
    pub fn wait_for_ever(&self) -> io::Result<()> {
        self.reader.get_ref().set_read_timeout(None)
    }

    /// A handle by which another thread can end the reading.
    pub fn stopper(&self) -> io::Result<UnixStream> {
        self.reader.get_ref().try_clone()
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = match &mut self.framing {
            Framing::UntilEnd => return self.reader.read(buffer),
            Framing::Length(left) => left,
            Framing::Chunked { left, first } => {
                if *left == 0 {
                    *left = next_chunk(&mut self.reader, std::mem::take(first))?;
                    if *left == 0 {
                        self.framing = Framing::Length(0);
                        return Ok(0);
                    }
                }
                left
            }
        };
        let most = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.reader.read(&mut buffer[..most])?;
        *left -= n as u64;
        Ok(n)
    }
}

/// Length of the next chunk; 0 is the end.
fn next_chunk(reader: &mut impl BufRead, first: bool) -> io::Result<u64> {
    let mut line = String::new();
    if !first {
        reader.by_ref().take(8).read_line(&mut line)?;
        line.clear();
    }
    if reader.by_ref().take(256).read_line(&mut line)? == 0 {
        return Ok(0);
    }
    let digits = line.split(';').next().unwrap_or_default().trim();
    u64::from_str_radix(digits, 16).map_err(|_| io::Error::other("a chunk without a length"))
}

/// Text as one part of a path or query.
pub fn percent_encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(bytes: &'static [u8]) -> io::Result<Answer> {
        let (mut ours, theirs) = UnixStream::pair()?;
        std::thread::spawn(move || {
            for piece in bytes.chunks(3) {
                let _ = ours.write_all(piece);
            }
        });
        read_head(theirs)
    }

    #[test]
    fn the_three_framings() {
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: A/B\r\n\r\n4\r\nabcd\r\n3;x=y\r\nefg\r\n0\r\n\r\n";
        let read = answer(chunked).unwrap();
        assert_eq!((read.status, read.content_type.as_str()), (200, "a/b"));
        assert_eq!(read.text().unwrap(), "abcdefg");
        assert_eq!(answer(b"HTTP/1.1 404 No\r\nContent-Length: 3\r\n\r\nabcXXX").unwrap().text().unwrap(), "abc");
        assert_eq!(answer(b"HTTP/1.0 200 OK\r\n\r\nabc").unwrap().text().unwrap(), "abc");
    }

    #[test]
    fn what_is_no_http() {
        assert!(answer(b"hello\r\n\r\n").is_err());
        assert!(answer(b"HTTP/1.1 200 OK\r\nA: b\r\n").is_err());
        let bad = answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").unwrap();
        assert!(bad.text().is_err());
    }

    #[test]
    fn encoding_a_query() {
        assert_eq!(percent_encode("a b/ü=&"), "a%20b%2F%C3%BC%3D%26");
    }
}
