//! A blocking client of a few lines, so that tests see the server without the library under test.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::role::Role;

/// Longest wait for the server's answer; a test that needs longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);
const PROTOCOL_3_0: i32 = 3 << 16;

/// One row of a result: each column as text, or `None` for NULL.
pub type Row = Vec<Option<String>>;

/// A connection over a Unix socket, without a password, for simple queries.
#[derive(Debug)]
pub struct Raw {
    stream: BufReader<UnixStream>,
    process_id: i32,
}

impl Raw {
    /// Logs in to `database` as `role`.
    pub(crate) fn connect(socket: &Path, role: &Role, database: &str) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut raw = Self { stream: BufReader::new(stream), process_id: 0 };
        let mut startup = PROTOCOL_3_0.to_be_bytes().to_vec();
        for text in ["user", role.name, "database", database, ""] {
            startup.extend_from_slice(text.as_bytes());
            startup.push(0);
        }
        raw.send(&[], &startup)?;
        raw.read_until_ready()?.map_err(io::Error::other)?;
        Ok(raw)
    }

    /// The process id of this connection's backend.
    pub fn process_id(&self) -> i32 {
        self.process_id
    }

    /// Leaves, and returns when the server has let go of the session, or has ended.
    pub fn close(mut self) {
        // Where that cannot be said any more, it is over.
        let _ = self.send(b"X", &[]).and_then(|()| self.stream.read_to_end(&mut Vec::new()));
    }

    /// Runs one statement and gives its rows; panics on an error.
    pub fn rows(&mut self, sql: &str) -> Vec<Row> {
        self.try_rows(sql).unwrap_or_else(|error| panic!("{error}, in {sql}"))
    }

    /// Runs one statement and gives the only column of its only row; panics on anything else.
    pub fn value(&mut self, sql: &str) -> String {
        let rows = self.rows(sql);
        match rows.as_slice() {
            [row] if row.len() == 1 => row[0].clone().unwrap_or_else(|| panic!("NULL from {sql}")),
            _ => panic!("not one value but {rows:?}, from {sql}"),
        }
    }

    /// Runs one statement.
    ///
    /// # Errors
    ///
    /// The server's SQLSTATE and message, or what went wrong with the connection.
    pub fn try_rows(&mut self, sql: &str) -> Result<Vec<Row>, String> {
        let mut query = sql.as_bytes().to_vec();
        query.push(0);
        self.send(b"Q", &query)
            .and_then(|()| self.read_until_ready())
            .map_err(|error| format!("the connection failed: {error}"))?
    }

    /// The outer result is the connection's, the inner one the server's verdict.
    fn read_until_ready(&mut self) -> io::Result<Result<Vec<Row>, String>> {
        let mut rows = Vec::new();
        let mut error = None;
        loop {
            let (tag, body) = self.receive()?;
            let mut body = body.as_slice();
            match tag {
                b'D' => rows.push(row(&mut body)?),
                b'E' => error = Some(error_text(body)),
                b'K' => self.process_id = int(&mut body)?,
                b'Z' => return Ok(error.map_or(Ok(rows), Err)),
                b'R' if int(&mut body)? != 0 => {
                    return Err(io::Error::other("the server asks for a password"));
                }
                _ => {} // Notices, parameters, descriptions and tags of commands.
            }
        }
    }

    fn send(&mut self, tag: &[u8], body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len() + 4).map_err(io::Error::other)?;
        let message = [tag, &length.to_be_bytes(), body].concat();
        self.stream.get_mut().write_all(&message)
    }

    fn receive(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut header = [0; 5];
        self.stream.read_exact(&mut header)?;
        let [tag, length @ ..] = header;
        let length = u32::from_be_bytes(length).saturating_sub(4);
        let mut body = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.stream.read_exact(&mut body)?;
        Ok((tag, body))
    }
}

fn row(body: &mut &[u8]) -> io::Result<Row> {
    let mut columns = [0; 2];
    body.read_exact(&mut columns)?;
    (0..u16::from_be_bytes(columns)).map(|_| column(body)).collect()
}

/// A length of -1 stands for NULL.
fn column(body: &mut &[u8]) -> io::Result<Option<String>> {
    let Ok(length) = usize::try_from(int(body)?) else { return Ok(None) };
    let mut text = vec![0; length];
    body.read_exact(&mut text)?;
    String::from_utf8(text).map(Some).map_err(io::Error::other)
}

fn int(body: &mut &[u8]) -> io::Result<i32> {
    let mut bytes = [0; 4];
    body.read_exact(&mut bytes)?;
    Ok(i32::from_be_bytes(bytes))
}

/// SQLSTATE and message out of an `ErrorResponse`.
fn error_text(body: &[u8]) -> String {
    let field = |code: u8| {
        let field = body.split(|&byte| byte == 0).find(|field| field.first() == Some(&code));
        String::from_utf8_lossy(field.and_then(|field| field.get(1..)).unwrap_or_default())
    };
    format!("{}: {}", field(b'C'), field(b'M'))
}
