//! A process of the server, without any sense of time: what it holds, and what it answers.

/// The process that the session holds its locks in; a pooler may lend it another one.
pub(super) const HOME: i32 = 1000;
/// The other one, with a number of as many digits.
pub(super) const ELSEWHERE: i32 = 9000;

/// Opens a transaction. The model knows no settings.
pub(super) const BEGIN: &str = "BEGIN; SELECT pg_catalog.pg_backend_pid()";

/// By a `CancelRequest`.
pub(super) const QUERY_CANCELED: &str = "57014";
/// By some timeout that is set on the server.
pub(super) const TIMEOUT: &str = "55P03";
const IN_FAILED_TRANSACTION: &str = "25P02";
pub(super) const ADMIN_SHUTDOWN: &str = "57P01";

/// A process, and what it holds.
#[derive(Debug)]
pub(super) struct Process {
    id: i32,
    /// How often it holds the lock.
    held: u32,
    transaction: Transaction,
}

/// What `ReadyForQuery` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transaction {
    None,
    Open,
    Failed,
}

/// A message that asks for something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Command {
    form: Form,
    statements: Vec<Statement>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Call,
    Query,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Statement {
    Begin,
    Rollback,
    ProcessId,
    /// The process, and a "true" that stands for the lock that the next statement releases.
    ProcessIdAndTrue,
    Lock,
    TryLock,
    Unlock,
    /// A sign of life is wanted.
    Heartbeat,
}

impl Command {
    /// Takes the first message off what was received, if it is complete.
    pub(super) fn read(received: &mut Vec<u8>) -> Option<Self> {
        let length = u32::from_be_bytes(received.get(1..5)?.try_into().unwrap());
        let end = 1 + usize::try_from(length).unwrap();
        if received.len() < end {
            return None;
        }
        let message: Vec<u8> = received.drain(..end).collect();
        Some(match message[0] {
            b'F' => Self { form: Form::Call, statements: vec![Statement::called(&message[5..])] },
            b'Q' => {
                let sql = std::str::from_utf8(&message[5..end - 1]).unwrap();
                let statements = sql.split("; ").map(Statement::written).collect();
                Self { form: Form::Query, statements }
            }
            other => panic!("message {other}"),
        })
    }

    /// Whether it waits for the lock.
    pub(super) fn is_wait(&self) -> bool {
        self.statements == [Statement::Lock]
    }

    pub(super) fn is_heartbeat(&self) -> bool {
        self.statements == [Statement::Heartbeat]
    }

    pub(super) fn can_fail(&self) -> bool {
        !matches!(self.statements[..], [Statement::Rollback | Statement::Heartbeat])
    }

    pub(super) fn begins(&self) -> bool {
        self.statements.first() == Some(&Statement::Begin)
    }
}

impl Statement {
    fn called(call: &[u8]) -> Self {
        match u32::from_be_bytes(call[..4].try_into().unwrap()) {
            2880 => Self::Lock,
            2882 => Self::TryLock,
            2884 => Self::Unlock,
            3810 => Self::Heartbeat,
            other => panic!("function {other}"),
        }
    }

    /// A session asks for its own locks, and a transaction for its own: here, both are the same.
    fn written(sql: &str) -> Self {
        match sql {
            "BEGIN" => Self::Begin,
            "ROLLBACK" => Self::Rollback,
            "SELECT pg_catalog.pg_backend_pid()" => Self::ProcessId,
            "SELECT pg_catalog.pg_backend_pid(), true" => Self::ProcessIdAndTrue,
            "SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_advisory_lock('42'::bigint)"
            | "SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_advisory_xact_lock('42'::bigint)" => {
                Self::Lock
            }
            "SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_try_advisory_lock('42'::bigint)"
            | "SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_try_advisory_xact_lock('42'::bigint)" => {
                Self::TryLock
            }
            "SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_advisory_unlock('42'::bigint)" => {
                Self::Unlock
            }
            "SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_is_in_recovery()" => Self::Heartbeat,
            other => panic!("statement {other}"),
        }
    }
}

impl Process {
    pub(super) fn new(id: i32) -> Self {
        Self { id, held: 0, transaction: Transaction::None }
    }

    pub(super) fn id(&self) -> i32 {
        self.id
    }

    pub(super) fn held(&self) -> u32 {
        self.held
    }

    pub(super) fn transaction(&self) -> Transaction {
        self.transaction
    }

    /// Runs a command and answers it. A wait has to be over.
    pub(super) fn run(&mut self, command: &Command, is_free: bool) -> Vec<u8> {
        let mut answer = Vec::new();
        for &statement in &command.statements {
            if self.transaction == Transaction::Failed && statement != Statement::Rollback {
                return [answer, self.fail(command, IN_FAILED_TRANSACTION)].concat();
            }
            let value = self.run_statement(statement, is_free);
            answer.extend(match command.form {
                Form::Call => returned(value),
                Form::Query => self.result(value),
            });
        }
        answer.extend(self.ready());
        answer
    }

    fn run_statement(&mut self, statement: Statement, is_free: bool) -> Value {
        match statement {
            Statement::Begin => {
                assert_eq!(self.transaction, Transaction::None, "a transaction in another one");
                self.transaction = Transaction::Open;
                Value::None
            }
            Statement::Rollback => {
                self.held = 0;
                self.transaction = Transaction::None;
                Value::None
            }
            Statement::ProcessId => Value::Nothing,
            Statement::ProcessIdAndTrue => Value::True,
            Statement::Lock => {
                self.grant();
                Value::Void
            }
            Statement::TryLock => {
                self.held += u32::from(is_free);
                Value::from(is_free)
            }
            Statement::Unlock => {
                let held = self.held > 0;
                self.held = self.held.saturating_sub(1);
                Value::from(held)
            }
            Statement::Heartbeat => Value::False,
        }
    }

    /// Grants the lock.
    pub(super) fn grant(&mut self) {
        self.held += 1;
    }

    /// Answers a command that fails. So does the transaction that is open, or that the command begins,
    /// which releases what it held.
    pub(super) fn fail(&mut self, command: &Command, sqlstate: &str) -> Vec<u8> {
        let mut begun = Vec::new();
        if command.begins() {
            let value = self.run_statement(Statement::Begin, false);
            begun = self.result(value);
        }
        if self.transaction != Transaction::None {
            self.held = 0;
            self.transaction = Transaction::Failed;
        }
        [begun, error("ERROR", sqlstate), self.ready()].concat()
    }

    /// Ends, with its last words.
    pub(super) fn shut_down(&mut self) -> Vec<u8> {
        self.held = 0;
        error("FATAL", ADMIN_SHUTDOWN)
    }

    /// A result: for a `SELECT`, with one row that begins with the process.
    fn result(&self, value: Value) -> Vec<u8> {
        let id = self.id.to_string();
        let values = match value {
            Value::None => return message(b'C', b"DONE\0"),
            Value::Nothing => vec![id.as_str()],
            Value::Void => vec![&id, ""],
            Value::False => vec![&id, "f"],
            Value::True => vec![&id, "t"],
        };
        let count = u16::try_from(values.len()).unwrap().to_be_bytes();
        let mut columns = count.to_vec();
        let mut row = count.to_vec();
        for value in values {
            columns.extend(b"?\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0");
            row.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
            row.extend(value.as_bytes());
        }
        [message(b'T', &columns), message(b'D', &row), message(b'C', b"SELECT 1\0")].concat()
    }

    fn ready(&self) -> Vec<u8> {
        message(
            b'Z',
            match self.transaction {
                Transaction::None => b"I",
                Transaction::Open => b"T",
                Transaction::Failed => b"E",
            },
        )
    }
}

/// What a statement gives, besides the process that ran it.
#[derive(Clone, Copy)]
enum Value {
    /// It is not a `SELECT`.
    None,
    Nothing,
    Void,
    False,
    True,
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        if value { Self::True } else { Self::False }
    }
}

/// The answer to a function call.
fn returned(value: Value) -> Vec<u8> {
    message(
        b'V',
        match value {
            Value::Void => b"\0\0\0\0",
            Value::False => b"\0\0\0\x01\0",
            Value::True => b"\0\0\0\x01\x01",
            Value::None | Value::Nothing => panic!("no function"),
        },
    )
}

fn error(severity: &str, sqlstate: &str) -> Vec<u8> {
    message(b'E', format!("S{severity}\0V{severity}\0C{sqlstate}\0M\0\0").as_bytes())
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag], length.as_slice(), body].concat()
}
