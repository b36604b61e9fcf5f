//! The file: entries by bucket and key, and how much there is.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use brig_api::Bytes;
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};
use tokio::sync::Semaphore;

/// Longest key.
const KEY_BYTES_MAX: usize = 1 << 10;
/// Largest value.
const VALUE_BYTES_MAX: usize = 1 << 20;
/// Most entries of a namespace on a node.
const ENTRIES_MAX: i64 = 100_000;
/// Most bytes of keys and values of a namespace on a node.
const BYTES_MAX: i64 = 256 << 20;
/// Most keys of one call, and of one page of a listing.
const BATCH_MAX: usize = 1_000;
/// Most bytes of values that one call answers with.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// The file, where entries were overwritten often; a second fence behind [`BYTES_MAX`].
const FILE_BYTES_MAX: i64 = 2 * BYTES_MAX;
const PAGE_BYTES: i64 = 4_096;
/// What is kept of the write-ahead log between uses.
const JOURNAL_BYTES_KEPT: i64 = 4 << 20;
/// Longest wait for another shim of the namespace.
const BUSY_WAIT: Duration = Duration::from_secs(5);

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS entry (
        id INTEGER PRIMARY KEY,
        bucket TEXT NOT NULL,
        key TEXT NOT NULL,
        value BLOB NOT NULL,
        UNIQUE (bucket, key)
    );
    CREATE TABLE IF NOT EXISTS total (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        entries INTEGER NOT NULL,
        bytes INTEGER NOT NULL
    );
    INSERT OR IGNORE INTO total VALUES (1, 0, 0);";

/// Why something could not be kept or read. Guests read this.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("a key of {0} bytes is too long: at most {KEY_BYTES_MAX}")]
    KeyTooLong(usize),
    #[error("a value of {0} is too large: at most {max}", max = size(VALUE_BYTES_MAX))]
    ValueTooLarge(Bytes),
    #[error("{0} keys are too many for one call: at most {BATCH_MAX}")]
    TooManyKeys(usize),
    #[error("the values are more than {max} together: ask for fewer keys at a time", max = size(ANSWER_BYTES_MAX))]
    AnswerTooLarge,
    #[error(
        "the namespace keeps as much on this node as it may: {ENTRIES_MAX} entries or {max}; delete some first",
        max = Bytes(BYTES_MAX.unsigned_abs())
    )]
    Full,
    #[error("there is no room for more on this node: delete some first")]
    NoRoom,
    #[error("`{0}` is no number from 0 to 18446744073709551615")]
    NoNumber(String),
    #[error("the sum is more than 18446744073709551615")]
    Overflow,
    #[error("the node's store failed: {0}")]
    Failed(String),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            // The file has its last page, or the disk is full.
            Some(rusqlite::ErrorCode::DiskFull) => Self::NoRoom,
            _ => Self::Failed(error.to_string()),
        }
    }
}

fn size(bytes: usize) -> Bytes {
    Bytes(u64::try_from(bytes).unwrap_or(u64::MAX))
}

/// A key and its value.
pub(super) type Entry = (String, Vec<u8>);

/// A page of a bucket's keys, and where the next one begins.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) keys: Vec<String>,
    pub(super) next: Option<u64>,
}

/// The store of a namespace. Opened when it is used first.
#[derive(Debug)]
pub(crate) struct Store {
    file: PathBuf,
    connection: Mutex<Option<Connection>>,
    /// One call at a time, which waits here and not on a thread.
    turn: Semaphore,
}

impl Store {
    pub(super) fn new(file: PathBuf) -> Arc<Self> {
        Arc::new(Self { file, connection: Mutex::default(), turn: Semaphore::new(1) })
    }

    /// Does something with the file on a thread that may wait for a disk.
    pub(super) async fn with<R: Send + 'static>(
        self: &Arc<Self>,
        act: impl FnOnce(&mut Connection) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<R, StoreError> {
        let _turn = self.turn.acquire().await;
        let store = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let mut connection = store.connection.lock().unwrap_or_else(PoisonError::into_inner);
            if connection.is_none() {
                *connection = Some(open(&store.file)?);
            }
            match &mut *connection {
                Some(connection) => act(connection),
                None => Err(StoreError::Failed("it was not opened".to_owned())),
            }
        });
        done.await.unwrap_or_else(|error| Err(StoreError::Failed(error.to_string())))
    }
}

fn open(file: &std::path::Path) -> Result<Connection, StoreError> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(|error| StoreError::Failed(error.to_string()))?;
    }
    let connection = Connection::open(file)?;
    connection.busy_timeout(BUSY_WAIT)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    // After a crash of the machine the newest entries may be gone; what is there is whole.
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "max_page_count", FILE_BYTES_MAX / PAGE_BYTES)?;
    connection.pragma_update(None, "journal_size_limit", JOURNAL_BYTES_KEPT)?;
    connection.execute_batch(SCHEMA)?;
    Ok(connection)
}

/// The value of a key.
pub(super) fn get(
    connection: &Connection,
    bucket: &str,
    key: &str,
) -> Result<Option<Vec<u8>>, StoreError> {
    let sql = "SELECT value FROM entry WHERE bucket = ?1 AND key = ?2";
    let mut statement = connection.prepare_cached(sql)?;
    Ok(statement.query_row(params![bucket, key], |row| row.get(0)).optional()?)
}

/// The values of several keys, each with its key.
pub(super) fn get_many(
    connection: &Connection,
    bucket: &str,
    keys: Vec<String>,
) -> Result<Vec<Option<Entry>>, StoreError> {
    check_batch(keys.len())?;
    let mut room = ANSWER_BYTES_MAX;
    let mut found = Vec::new();
    for key in keys {
        let value = get(connection, bucket, &key)?;
        let length = value.as_ref().map_or(0, Vec::len);
        room = room.checked_sub(length).ok_or(StoreError::AnswerTooLarge)?;
        found.push(value.map(|value| (key, value)));
    }
    Ok(found)
}

/// Whether there is such a key.
pub(super) fn exists(connection: &Connection, bucket: &str, key: &str) -> Result<bool, StoreError> {
    Ok(length(connection, bucket, key)?.is_some())
}

/// A page of a bucket's keys, in the order in which they were set first.
pub(super) fn list(
    connection: &Connection,
    bucket: &str,
    after: Option<u64>,
) -> Result<Keys, StoreError> {
    let after = i64::try_from(after.unwrap_or(0)).unwrap_or(i64::MAX);
    let most = i64::try_from(BATCH_MAX).unwrap_or(i64::MAX);
    let sql = "SELECT id, key FROM entry WHERE bucket = ?1 AND id > ?2 ORDER BY id LIMIT ?3";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map(params![bucket, after, most], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
    })?;
    let rows = rows.collect::<Result<Vec<_>, _>>()?;
    let last = rows.last().filter(|_| rows.len() == BATCH_MAX).map(|(id, _)| id.unsigned_abs());
    Ok(Keys { keys: rows.into_iter().map(|(_, key)| key).collect(), next: last })
}

/// Sets all of them, or none.
pub(super) fn set_many(
    connection: &mut Connection,
    bucket: &str,
    entries: &[Entry],
) -> Result<(), StoreError> {
    check_batch(entries.len())?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for (key, value) in entries {
        put(&transaction, bucket, key, value)?;
    }
    Ok(transaction.commit()?)
}

/// Deletes all of them, those that are there.
pub(super) fn delete_many(
    connection: &mut Connection,
    bucket: &str,
    keys: &[String],
) -> Result<(), StoreError> {
    check_batch(keys.len())?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for key in keys {
        if let Some(old) = length(&transaction, bucket, key)? {
            let sql = "DELETE FROM entry WHERE bucket = ?1 AND key = ?2";
            transaction.prepare_cached(sql)?.execute(params![bucket, key])?;
            count(&transaction, -1, -(old + stored(key.len())))?;
        }
    }
    Ok(transaction.commit()?)
}

/// Adds to a number in decimal digits, 0 where there is none; the sum.
pub(super) fn increment(
    connection: &mut Connection,
    bucket: &str,
    key: &str,
    delta: u64,
) -> Result<u64, StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let before = match get(&transaction, bucket, key)? {
        Some(value) => {
            let text = String::from_utf8_lossy(&value).into_owned();
            text.parse::<u64>()
                .map_err(|_| StoreError::NoNumber(text.chars().take(20).collect()))?
        }
        None => 0,
    };
    let sum = before.checked_add(delta).ok_or(StoreError::Overflow)?;
    put(&transaction, bucket, key, sum.to_string().as_bytes())?;
    transaction.commit()?;
    Ok(sum)
}

fn put(connection: &Connection, bucket: &str, key: &str, value: &[u8]) -> Result<(), StoreError> {
    if key.len() > KEY_BYTES_MAX {
        return Err(StoreError::KeyTooLong(key.len()));
    }
    if value.len() > VALUE_BYTES_MAX {
        return Err(StoreError::ValueTooLarge(size(value.len())));
    }
    let (entries, bytes) = match length(connection, bucket, key)? {
        Some(old) => (0, stored(value.len()) - old),
        None => (1, stored(value.len()) + stored(key.len())),
    };
    let sql = "INSERT INTO entry (bucket, key, value) VALUES (?1, ?2, ?3) \
               ON CONFLICT (bucket, key) DO UPDATE SET value = excluded.value";
    connection.prepare_cached(sql)?.execute(params![bucket, key, value])?;
    count(connection, entries, bytes)
}

fn length(connection: &Connection, bucket: &str, key: &str) -> Result<Option<i64>, StoreError> {
    let sql = "SELECT length(value) FROM entry WHERE bucket = ?1 AND key = ?2";
    let mut statement = connection.prepare_cached(sql)?;
    Ok(statement.query_row(params![bucket, key], |row| row.get(0)).optional()?)
}

fn stored(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// Takes down how much there is; refuses what would be too much. What shrinks is never refused.
fn count(connection: &Connection, entries: i64, bytes: i64) -> Result<(), StoreError> {
    let sql =
        "UPDATE total SET entries = entries + ?1, bytes = bytes + ?2 RETURNING entries, bytes";
    let mut statement = connection.prepare_cached(sql)?;
    let (all_entries, all_bytes) = statement.query_row(params![entries, bytes], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
    })?;
    let is_full = entries > 0 && all_entries > ENTRIES_MAX || bytes > 0 && all_bytes > BYTES_MAX;
    if is_full { Err(StoreError::Full) } else { Ok(()) }
}

fn check_batch(keys: usize) -> Result<(), StoreError> {
    if keys > BATCH_MAX { Err(StoreError::TooManyKeys(keys)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct File(tempfile::TempDir);

    impl File {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn open(&self) -> Connection {
            open(&self.0.path().join("team/entries.db")).unwrap()
        }
    }

    fn set(connection: &mut Connection, key: &str, value: &[u8]) -> Result<(), StoreError> {
        set_many(connection, "b", &[(key.to_owned(), value.to_owned())])
    }

    #[test]
    fn what_is_kept_is_there_after_opening_again_and_for_another_shim() {
        let file = File::new();
        let (mut first, other) = (file.open(), file.open());
        set(&mut first, "k", b"one").unwrap();
        set(&mut first, "k", b"two").unwrap();
        assert_eq!(get(&other, "b", "k").unwrap().as_deref(), Some(&b"two"[..]));
        assert_eq!(get(&other, "another bucket", "k").unwrap(), None);
        drop((first, other));
        let mut again = file.open();
        assert!(exists(&again, "b", "k").unwrap());
        delete_many(&mut again, "b", &["k".into(), "never there".into()]).unwrap();
        assert!(!exists(&again, "b", "k").unwrap());
        let total = "SELECT entries + bytes FROM total";
        assert_eq!(again.query_row(total, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
    }

    #[test]
    fn what_is_too_much_is_refused_and_changes_nothing() {
        let file = File::new();
        let mut store = file.open();
        let long = "k".repeat(KEY_BYTES_MAX + 1);
        assert!(matches!(set(&mut store, &long, b""), Err(StoreError::KeyTooLong(_))));
        let large = vec![0; VALUE_BYTES_MAX + 1];
        let both = [("small".to_owned(), vec![1]), ("large".to_owned(), large)];
        assert!(matches!(set_many(&mut store, "b", &both), Err(StoreError::ValueTooLarge(_))));
        assert!(!exists(&store, "b", "small").unwrap(), "all or nothing");
        store.execute("UPDATE total SET bytes = ?1", [BYTES_MAX - 5]).unwrap();
        set(&mut store, "k", b"1234").unwrap();
        assert!(matches!(set(&mut store, "l", b""), Err(StoreError::Full)));
        assert!(matches!(set(&mut store, "k", b"12345"), Err(StoreError::Full)));
        set(&mut store, "k", b"1").unwrap();
        store.execute("UPDATE total SET entries = ?1", [ENTRIES_MAX]).unwrap();
        assert!(matches!(set(&mut store, "l", b""), Err(StoreError::Full)));
        let many = vec![String::new(); BATCH_MAX + 1];
        assert!(matches!(get_many(&store, "b", many), Err(StoreError::TooManyKeys(_))));
    }

    #[test]
    fn the_answer_to_one_call_is_bounded() {
        let file = File::new();
        let mut store = file.open();
        set(&mut store, "k", &vec![0; VALUE_BYTES_MAX]).unwrap();
        let eight = vec!["k".to_owned(); 8];
        assert_eq!(get_many(&store, "b", eight).unwrap().len(), 8);
        let nine = vec!["k".to_owned(); 9];
        assert!(matches!(get_many(&store, "b", nine), Err(StoreError::AnswerTooLarge)));
    }

    #[test]
    fn keys_are_listed_page_by_page() {
        let file = File::new();
        let mut store = file.open();
        let entries: Vec<_> = (0..BATCH_MAX).map(|n| (format!("k{n}"), Vec::new())).collect();
        set_many(&mut store, "b", &entries).unwrap();
        set(&mut store, "last", b"").unwrap();
        let first = list(&store, "b", None).unwrap();
        assert_eq!((first.keys.len(), first.keys[0].as_str()), (BATCH_MAX, "k0"));
        let second = list(&store, "b", first.next).unwrap();
        assert_eq!(second, Keys { keys: vec!["last".into()], next: None });
        assert_eq!(list(&store, "b", Some(u64::MAX)).unwrap().keys.len(), 0);
    }

    #[test]
    fn numbers_are_added_to_and_nothing_else_is() {
        let file = File::new();
        let mut store = file.open();
        assert_eq!(increment(&mut store, "b", "n", 2).unwrap(), 2);
        assert_eq!(increment(&mut store, "b", "n", u64::MAX - 2).unwrap(), u64::MAX);
        assert!(matches!(increment(&mut store, "b", "n", 1), Err(StoreError::Overflow)));
        set(&mut store, "t", b"text").unwrap();
        assert!(matches!(increment(&mut store, "b", "t", 1), Err(StoreError::NoNumber(_))));
    }
}
