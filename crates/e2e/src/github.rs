//! What a server under test takes for GitHub: `/<user>.keys` on a port of loopback.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

/// The one profile that there is.
pub const PROFILE: &str = "octocat";

/// A well-formed ed25519 key; each number another one.
pub fn key(number: u8) -> String {
    let blob = [&b"\0\0\0\x0bssh-ed25519\0\0\0\x20"[..], &[number; 32]].concat();
    format!("ssh-ed25519 {} me@laptop", base64(&blob))
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let number = part.iter().chain([&0; 2]).take(3).fold(0usize, |n, byte| n << 8 | usize::from(*byte));
        for place in 0..4 {
            let letter = LETTERS[number >> (18 - 6 * place) & 63] as char;
            text.push(if place <= part.len() { letter } else { '=' });
        }
    }
    text
}

/// Serves [`PROFILE`] with these keys until the process ends; answers the URL.
pub fn serve(keys: &[String]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let keys = keys.join("\n") + "\n";
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut line = String::new();
            let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
            let _ = reader.read_line(&mut line);
            // The rest of the request, so that closing is no reset.
            for header in reader.lines().map_while(Result::ok) {
                if header.is_empty() {
                    break;
                }
            }
            let known = line.split(' ').nth(1) == Some(&format!("/{PROFILE}.keys"));
            let (status, body) = if known { ("200 OK", keys.as_str()) } else { ("404 Not Found", "") };
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _ = stream.write_all((head + body).as_bytes());
        }
    });
    url
}
