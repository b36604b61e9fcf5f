//! What a question may be made of: a strict subset of SQL that both databases read in the same way.
//!
//! Whatever could be read in two ways is refused (escapes, dollar quotes, block comments, prefixed strings), so that
//! the database cannot find a word where we found a text. What is left is looked at word by word: no table that nobody
//! may read, no word that changes anything, and no call of a function that is not known to be harmless. The last rule
//! matters on PostgreSQL, where functions change settings and run other queries from texts.

use super::screen_words::{
    FORBIDDEN_NAMES, FORBIDDEN_WORDS, FUNCTIONS, HIDDEN, OPENERS, STARTS, SYSTEM_PREFIXES,
    SYSTEM_READABLE,
};

/// Longest query.
const QUERY_BYTES_MAX: usize = 64 << 10;
/// Characters that stand for themselves, besides letters, digits, blanks and quotes.
const SYMBOLS: &str = "(),.*+-/%<>=!|&~:@#^;";

/// A query that may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Screened<'query> {
    /// One statement, without a semicolon at its end.
    pub(super) text: &'query str,
    /// It asks how another query would run.
    pub(super) is_explain: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// In lower case.
    Word(String),
    /// What stands between double quotes.
    Quoted(String),
    /// What stands between single quotes.
    Text(String),
    Number,
    Symbol(char),
}

/// Checks a query; the error says what is not allowed and, where there is one, the way out.
pub(super) fn screen(query: &str) -> Result<Screened<'_>, String> {
    if query.len() > QUERY_BYTES_MAX {
        return Err(format!("{} bytes are too long: at most {QUERY_BYTES_MAX}", query.len()));
    }
    let (tokens, end) = tokens(query)?;
    let first = match tokens.first() {
        Some(Token::Word(word)) if STARTS.contains(&word.as_str()) => word,
        Some(_) => {
            return Err(format!("expected one query that begins with {}", STARTS.join(", ")));
        }
        None => {
            return Err("it is empty: expected one query, such as `select * from units`".to_owned());
        }
    };
    for (index, token) in tokens.iter().enumerate() {
        check_name(token)?;
        if let (Token::Word(name) | Token::Quoted(name), Some(Token::Symbol('('))) =
            (token, tokens.get(index + 1))
        {
            let before = index.checked_sub(1).and_then(|before| tokens.get(before));
            check_call(name, before)?;
        }
    }
    Ok(Screened { text: &query[..end], is_explain: first == "explain" })
}

fn check_name(token: &Token) -> Result<(), String> {
    let name = match token {
        Token::Number | Token::Symbol(_) => return Ok(()),
        // SQLite takes a text for a name where only a name makes sense.
        Token::Word(name) | Token::Quoted(name) | Token::Text(name) => name.to_ascii_lowercase(),
    };
    if let Some((_, what)) = HIDDEN.iter().find(|(hidden, _)| *hidden == name.trim()) {
        return Err(format!("{what} cannot be read"));
    }
    let is_name = !matches!(token, Token::Text(_));
    let is_system = SYSTEM_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let is_forbidden = FORBIDDEN_NAMES.contains(&name.as_str());
    if is_forbidden || is_name && is_system && !SYSTEM_READABLE.contains(&name.as_str()) {
        return Err(format!("`{name}` belongs to the database itself and cannot be read"));
    }
    if matches!(token, Token::Word(_)) && FORBIDDEN_WORDS.contains(&name.as_str()) {
        return Err(format!("`{name}` could change something: only reading is allowed"));
    }
    Ok(())
}

/// Checks a name that is followed by an opening parenthesis.
fn check_call(name: &str, before: Option<&Token>) -> Result<(), String> {
    let is_no_call = match before {
        // `AS t (a, b)`, `CAST(x AS numeric(9))`, `x::numeric(9)`, `WITH t (a) AS …`: no calls.
        Some(Token::Word(word)) => matches!(word.as_str(), "as" | "with" | "recursive"),
        Some(Token::Symbol(symbol)) => *symbol == ':',
        _ => false,
    };
    let name = name.to_ascii_lowercase();
    if is_no_call || OPENERS.contains(&name.as_str()) || FUNCTIONS.contains(&name.as_str()) {
        return Ok(());
    }
    Err(format!("the function `{name}` is not among those that a query may call"))
}

/// The tokens of one statement, and where its text ends.
fn tokens(query: &str) -> Result<(Vec<Token>, usize), String> {
    let mut tokens = Vec::new();
    let mut end = 0;
    let mut is_over = false;
    let mut rest = query.char_indices().peekable();
    while let Some((start, character)) = rest.next() {
        if character.is_ascii_whitespace() {
            continue;
        }
        if query[start..].starts_with("--") {
            while rest.next_if(|(_, c)| !matches!(c, '\n' | '\r')).is_some() {}
            continue;
        }
        if query[start..].starts_with("/*") {
            return Err("`/* */` comments are not understood here: use `--`".to_owned());
        }
        if is_over {
            return Err("expected one query: there is more after the semicolon".to_owned());
        }
        let token = match character {
            ';' => {
                is_over = true;
                continue;
            }
            '\'' | '"' => quoted(query, start, character, &mut rest)?,
            c if c.is_ascii_alphabetic() || c == '_' => {
                let length = query[start..]
                    .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                    .unwrap_or(query.len() - start);
                while rest.next_if(|(at, _)| *at < start + length).is_some() {}
                Token::Word(query[start..start + length].to_ascii_lowercase())
            }
            c if c.is_ascii_digit() => {
                let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
                while rest.next_if(|(_, c)| is_part(*c)).is_some() {}
                Token::Number
            }
            c if SYMBOLS.contains(c) => Token::Symbol(c),
            c => return Err(format!("`{}` is not understood here", c.escape_default())),
        };
        tokens.push(token);
        end = rest.peek().map_or(query.len(), |(next, _)| *next);
    }
    Ok((tokens, end))
}

/// Reads a quoted text or name whose first quote was read; a doubled quote stands for one.
fn quoted(
    query: &str,
    start: usize,
    quote: char,
    rest: &mut std::iter::Peekable<std::str::CharIndices<'_>>,
) -> Result<Token, String> {
    let before = query[..start].chars().next_back();
    if before.is_some_and(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '&' | '\'' | '"')) {
        return Err(
            "prefixed texts such as E'…' and U&'…' are not understood here: use '…'".to_owned()
        );
    }
    let mut content = String::new();
    while let Some((_, character)) = rest.next() {
        match character {
            '\\' | '\0' => return Err("backslashes are not understood here".to_owned()),
            c if c != quote => content.push(c),
            _ if rest.next_if(|(_, next)| *next == quote).is_some() => content.push(quote),
            _ if quote == '\'' => return Ok(Token::Text(content)),
            _ => return Ok(Token::Quoted(content)),
        }
    }
    Err(format!("a text that begins with {quote} does not end"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_pass() {
        for query in [
            "select node, sum(cpu_milli) from units where state in ('running', 'assigned') group by node",
            "SELECT * FROM units -- all of them\n;",
            "with live(n) as (select name from units where desired = 'run') select count(*) from live",
            "with recursive up as (select 'a' as x union all select 'b') select * from up",
            "values (1, 2), (3, 4)",
            "explain select 1",
            "select 'it''s; drop table units', \"name\", cast(priority as numeric(9, 2)) from units as t",
            "select a.name from units a join nodes b on (a.node = b.name) where exists (select 1)",
            "select template::jsonb -> 'tasks', -1 - -2, 3 <> 4 from units",
            "select 'unit `é`' as x from sqlite_schema",
            "select is_deleting, created_ms from services",
        ] {
            assert!(screen(query).is_ok(), "{query}: {:?}", screen(query));
        }
    }

    #[test]
    fn whatever_could_change_something_is_refused() {
        for query in [
            "",
            ";",
            "delete from units",
            "pragma journal_mode = off",
            "select 1; delete from units",
            "with gone as (delete from units returning *) select * from gone",
            "select * into copied from units",
            "select * from units for update",
            "explain analyze insert into units values (1)",
            "select set_config('role', 'none', true)",
            "select \"set_config\"('role', 'none', true)",
            "select pg_catalog.set_config ('role', 'none', true)",
            "select set_config -- a comment\n ('role', 'none', true)",
            "select * from a, set_config('role', 'none', true) as b (c)",
            "select pg_sleep(10)",
            "select query_to_xml('select 1', true, true, '')",
            "select load_extension('x')",
            "select lo_import('/etc/passwd')",
            "attach 'x' as y",
            "call p()",
            "do 'x'",
            "begin",
        ] {
            assert!(screen(query).is_err(), "{query}");
        }
    }

    #[test]
    fn the_texts_of_secrets_have_no_name_here() {
        for query in [
            "select * from secret_texts",
            "select * from SECRET_Texts",
            "select * from \"secret_texts\"",
            "select * from 'secret_texts'",
            "select * from [secret_texts]",
            "select * from `secret_texts`",
            "select * from main.secret_texts",
            "select * from public . secret_texts",
            "with a as (table secret_texts) select * from a",
            "select (select count(*) from secret_texts)",
            "select * from U&\"secret\\005ftexts\"",
            "select * from U&\"secret!005ftexts\" uescape '!'",
            "select E'\\'' , * from secret_texts --'",
            "select $$'$$, * from secret_texts --'",
            "select /* ' */ * from secret_texts --'",
            "select 'a' /* ' */ , * from secret_texts",
            "select * from pg_statistic",
            "select * from sqlite_dbpage",
            "select hex(state) from checkpoint_states",
            "select * from \"Checkpoint_States\"",
        ] {
            assert!(screen(query).is_err(), "{query}");
        }
    }

    #[test]
    fn the_text_ends_before_the_semicolon_and_its_comment() {
        let screened = screen(" select 1 ; -- done").unwrap();
        assert_eq!((screened.text, screened.is_explain), (" select 1", false));
        assert_eq!(screen("explain select 1 -- x").unwrap().text, "explain select 1");
    }

    #[test]
    fn a_refusal_names_the_way_out() {
        assert!(screen("select /* x */ 1").unwrap_err().contains("`--`"));
        assert!(screen("drop table units").unwrap_err().contains("select"));
        assert!(screen(&"x".repeat(QUERY_BYTES_MAX + 1)).unwrap_err().contains("at most"));
    }
}
