//! The words that decide whether a query may be asked; all in lower case.

/// The table that nobody may read.
pub(super) const HIDDEN_NAME: &str = "secret_texts";

/// A query begins with one of these.
pub(super) const STARTS: [&str; 4] = ["select", "with", "values", "explain"];

/// Names of the databases' own tables and functions begin so.
pub(super) const SYSTEM_PREFIXES: [&str; 4] = ["pg_", "sqlite_", "lo_", "dblink"];
/// … but these show the tables' definitions alone.
pub(super) const SYSTEM_READABLE: [&str; 2] = ["sqlite_schema", "sqlite_master"];
/// Tables that show the raw file.
pub(super) const FORBIDDEN_NAMES: [&str; 2] = ["sqlite_dbpage", "dbstat"];

/// Words of statements that change something (or settings), and of their parts. None is a column of ours.
pub(super) const FORBIDDEN_WORDS: [&str; 41] = [
    "alter", "attach", "begin", "call", "checkpoint", "commit", "copy", "create",
    "deallocate", "declare", "delete", "detach", "discard", "do", "drop", "execute", "grant", "import",
    "insert", "into", "listen", "load", "lock", "merge", "move", "notify", "pragma", "prepare", "reassign",
    "refresh", "reindex", "reset", "returning", "revoke", "rollback", "savepoint", "set", "truncate", "uescape",
    "update", "vacuum",
];

/// Words after which a parenthesis opens no call.
pub(super) const OPENERS: [&str; 42] = [
    "all", "and", "any", "as", "between", "by", "case", "cast", "distinct", "else", "end", "except", "exists",
    "explain", "filter", "from", "group", "having", "ilike", "in", "intersect", "is", "join", "lateral", "like",
    "limit", "materialized", "not", "offset", "on", "or", "order", "over", "row", "select", "some", "then", "union",
    "using", "values", "when", "where",
];

/// Functions that neither change anything nor run texts as queries, of either database.
pub(super) const FUNCTIONS: [&str; 100] = [
    // Aggregates.
    "array_agg", "avg", "bool_and", "bool_or", "count", "every", "group_concat", "json_agg", "json_group_array",
    "json_group_object", "json_object_agg", "jsonb_agg", "jsonb_object_agg", "max", "min", "string_agg", "sum",
    "total",
    // Windows.
    "cume_dist", "dense_rank", "first_value", "lag", "last_value", "lead", "nth_value", "ntile", "percent_rank",
    "rank", "row_number",
    // Numbers.
    "abs", "ceil", "ceiling", "floor", "ln", "log", "mod", "power", "round", "sign", "sqrt", "trunc",
    // Choices.
    "coalesce", "greatest", "ifnull", "iif", "least", "nullif",
    // Texts.
    "btrim", "char_length", "concat", "concat_ws", "initcap", "instr", "left", "length", "lower", "ltrim",
    "octet_length", "position", "replace", "reverse", "right", "rtrim", "split_part", "strpos", "substr",
    "substring", "trim", "typeof", "upper",
    // Times.
    "age", "date", "date_part", "date_trunc", "datetime", "extract", "julianday", "now", "strftime", "time",
    "to_char", "to_timestamp", "unixepoch",
    // JSON.
    "json_array_elements", "json_array_elements_text", "json_array_length", "json_each", "json_each_text",
    "json_extract", "json_extract_path_text", "json_tree", "json_type", "json_typeof", "jsonb_array_elements",
    "jsonb_array_elements_text", "jsonb_array_length", "jsonb_each", "jsonb_each_text", "jsonb_extract_path_text",
    "jsonb_typeof",
];
