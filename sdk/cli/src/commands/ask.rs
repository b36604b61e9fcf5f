//! `describe`, `why`, `events`, `sql` and `version`.

use std::time::Duration;

use brig_api::checkpoint::CheckpointView;
use brig_api::explain::Explanation;
use brig_api::object::{Object, ObjectKey, Owner, Unit};
use brig_api::usage::Usage;
use brig_api::{Bytes, Kind, ResourceName};
use brig_client::{ClientError, EventQuery};
use serde_json::Value;

use crate::arguments::{Events, Output, OutputOnly, Sql, Target, Why};
use crate::failure::{Failure, NOT_FOUND};
use crate::output::{
    Column, Field, Row, age, json, print, print_list, printable, size, table, yaml,
};
use crate::rows::{EVENT_COLUMNS, event_row};
use crate::target;

use super::{Session, now_ms};

/// How many events `describe` shows.
const DESCRIBED_EVENTS: u32 = 20;

pub(crate) async fn describe(session: &Session<'_>, arguments: &Target) -> Result<(), Failure> {
    let key = target::parse(&arguments.target, &session.context.namespace())?;
    let object = session.client.get(&key).await?;
    print(&printable_lines(&yaml(&object)?))?;
    if let Object::Unit(unit) = &object {
        match session.client.why(&unit.namespace, unit.name.as_str()).await {
            Ok(explanation) => print(&format!("\nWhy\n{}", rendered(&key.name, &explanation)?))?,
            // Not decided yet.
            Err(ClientError::Problem(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let usage = session.client.usage(&unit.namespace, unit.name.as_str()).await?;
        print(&format!("\nUsage\n{}", usage_lines(&usage)))?;
        let saved = session.client.checkpoints(&unit.namespace, unit.name.as_str()).await?;
        if !saved.is_empty() {
            print(&format!("\nCheckpoints\n{}", checkpoint_lines(&saved, now_ms())))?;
        }
    }
    let query = EventQuery {
        namespace: key.namespace.clone(),
        kind: Some(key.kind),
        name: Some(key.name.clone()),
        limit: Some(DESCRIBED_EVENTS),
    };
    let events = session.client.events(&query).await?;
    let rows: Vec<_> = events.iter().map(|event| event_row(event, now_ms())).collect();
    print(&format!("\nEvents\n{}", table(EVENT_COLUMNS, &rows, false)))
}

/// What a unit used, for people.
fn usage_lines(usage: &Usage) -> String {
    if *usage == Usage::default() {
        return "nothing was told yet\n".to_owned();
    }
    let seconds = |ns: u64| Duration::from_nanos(ns).as_secs_f64();
    let peak = Bytes(usage.memory_peak_bytes);
    let over_time = Bytes(usage.memory_byte_s);
    format!(
        "cpu     {:.3} core-seconds, held back for {:.3} s\nmemory  at most {peak}, {over_time}-seconds\n",
        seconds(usage.cpu_ns),
        seconds(usage.throttled_ns)
    )
}

/// When each task last saved where it is, for people.
fn checkpoint_lines(saved: &[CheckpointView], now_ms: i64) -> String {
    let line = |one: &CheckpointView| {
        let (size, age) = (size(one.bytes), age(one.saved_ms, now_ms));
        format!("{}  number {}, {size}, saved {age} ago\n", one.task, one.number)
    };
    saved.iter().map(line).collect()
}

/// Text of several lines without other control characters.
fn printable_lines(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", printable(line))).collect()
}

fn rendered(unit: &str, explanation: &Explanation) -> Result<String, Failure> {
    Ok(printable_lines(&explanation.render(&name_of(unit)?)))
}

pub(crate) async fn why(session: &Session<'_>, arguments: &Why) -> Result<(), Failure> {
    let key = target::parse(&arguments.target, &session.context.namespace())?;
    let units = match key.kind {
        Kind::Unit => vec![key],
        Kind::Service | Kind::Job => waiting_units(session, &key).await?,
        kind => {
            return Err(Failure::usage(format!(
                "a {kind} is not scheduled: name a unit, service or job"
            )));
        }
    };
    let mut texts = String::new();
    let mut decisions = Vec::new();
    let mut verdicts = Vec::new();
    for unit in &units {
        let namespace = unit.namespace.clone().unwrap_or_else(|| session.context.namespace());
        if let Some(node) = &arguments.node {
            let verdict = session.client.why_on(&namespace, &unit.name, node).await?;
            texts.push_str(&printable_lines(&verdict.render(&name_of(&unit.name)?)));
            verdicts.push(verdict);
        } else if arguments.history {
            for decision in session.client.why_history(&namespace, &unit.name).await? {
                let at = age(decision.decided_ms, now_ms());
                texts.push_str(&format!("{at} ago: {}", rendered(&unit.name, &decision)?));
                decisions.push(decision);
            }
        } else {
            let decision = session.client.why(&namespace, &unit.name).await?;
            texts.push_str(&rendered(&unit.name, &decision)?);
            decisions.push(decision);
        }
    }
    let is_about_node = arguments.node.is_some();
    match arguments.output {
        Output::Json if is_about_node => print(&json(&verdicts)?),
        Output::Yaml if is_about_node => print(&yaml(&verdicts)?),
        Output::Json => print(&json(&decisions)?),
        Output::Yaml => print(&yaml(&decisions)?),
        Output::Table | Output::Wide | Output::Name => print(&texts),
    }
}

fn name_of(unit: &str) -> Result<ResourceName, Failure> {
    unit.parse().map_err(|error| Failure::usage(format!("{error}")))
}

/// The units of a service or job that have no node; all of them when every one has.
async fn waiting_units(
    session: &Session<'_>,
    owner: &ObjectKey,
) -> Result<Vec<ObjectKey>, Failure> {
    let units = units_of(session, owner).await?;
    let waiting: Vec<_> =
        units.iter().filter(|unit| unit.node.is_none() && !unit.status.state.is_final()).collect();
    let shown = if waiting.is_empty() { units.iter().collect() } else { waiting };
    if shown.is_empty() {
        return Err(Failure::new(NOT_FOUND, format!("{owner} has no units")));
    }
    Ok(shown.into_iter().map(|unit| Object::Unit(Box::new(unit.clone())).key()).collect())
}

/// Every unit of a service or job.
pub(super) async fn units_of(
    session: &Session<'_>,
    owner: &ObjectKey,
) -> Result<Vec<Unit>, Failure> {
    let is_owned = |unit: &Unit| {
        unit.owner
            .as_ref()
            .is_some_and(|o: &Owner| o.kind() == owner.kind && o.name().as_str() == owner.name)
            && Some(&unit.namespace) == owner.namespace.as_ref()
    };
    // An owner that does not exist is an error, not an empty list.
    session.client.get(owner).await?;
    let list = session.client.list(Kind::Unit, owner.namespace.as_ref()).await?;
    let units = list.items.into_iter().filter_map(|object| match object {
        Object::Unit(unit) if is_owned(&unit) => Some(*unit),
        _ => None,
    });
    Ok(units.collect())
}

pub(crate) async fn events(session: &Session<'_>, arguments: &Events) -> Result<(), Failure> {
    let mut query = EventQuery {
        namespace: session.context.namespace.clone(),
        limit: Some(arguments.tail),
        ..EventQuery::default()
    };
    if let Some(about) = &arguments.target {
        let key = target::parse(about, &session.context.namespace())?;
        query = EventQuery {
            namespace: key.namespace,
            kind: Some(key.kind),
            name: Some(key.name),
            ..query
        };
    }
    let events = session.client.events(&query).await?;
    let rows: Vec<_> = events.iter().map(|event| event_row(event, now_ms())).collect();
    print_list(arguments.output, EVENT_COLUMNS, &rows, &events)
}

pub(crate) async fn sql(session: &Session<'_>, arguments: &Sql) -> Result<(), Failure> {
    let response = session.client.sql(&arguments.query).await?;
    match arguments.output {
        Output::Json | Output::Yaml => {
            let objects: Vec<Value> = response
                .rows
                .iter()
                .map(|row| {
                    Value::Object(
                        response.columns.iter().cloned().zip(row.iter().cloned()).collect(),
                    )
                })
                .collect();
            let is_json = arguments.output == Output::Json;
            print(&if is_json { json(&objects)? } else { yaml(&objects)? })?;
        }
        Output::Table | Output::Wide | Output::Name => {
            print(&sql_table(&response.columns, &response.rows))?;
        }
    }
    if response.is_truncated {
        crate::say("there are more rows: narrow the query, or add LIMIT and OFFSET");
    }
    Ok(())
}

fn sql_table(columns: &[String], rows: &[Vec<Value>]) -> String {
    let text = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    // Headings that the query chose: the first row of the table, not a `Column`.
    let head = Row { name: String::new(), fields: columns.iter().map(Field::from).collect() };
    let body = rows.iter().map(|row| Row {
        name: String::new(),
        fields: row.iter().map(|v| text(v).into()).collect(),
    });
    let all: Vec<_> = std::iter::once(head).chain(body).collect();
    let blank = vec![Column { heading: "", is_wide: false }; columns.len()];
    let table = table(&blank, &all, true);
    table.split_once('\n').map_or(String::new(), |(_, rest)| rest.to_owned())
}

pub(crate) async fn version(session: &Session<'_>, arguments: &OutputOnly) -> Result<(), Failure> {
    let client = env!("CARGO_PKG_VERSION");
    // This command's own version is known without a server.
    let server = session.client.version().await;
    match arguments.output {
        Output::Json => {
            print(&json(&serde_json::json!({ "client": client, "server": server.ok() }))?)
        }
        Output::Yaml => {
            print(&yaml(&serde_json::json!({ "client": client, "server": server.ok() }))?)
        }
        Output::Table | Output::Wide | Output::Name => {
            print(&format!("brig {client}\n"))?;
            match server {
                Ok(server) => {
                    let (version, database, revision) =
                        (server.version, server.database, server.revision);
                    print(&format!(
                        "server {version} on {database}, revision {revision} ({})\n",
                        session.client.server()
                    ))
                }
                Err(error) => {
                    crate::say(&format!("no server: {error}"));
                    Ok(())
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sql_results_have_the_queries_headings() {
        let rows = vec![
            vec![Value::from("node-1"), Value::from(250)],
            vec![Value::Null, Value::from(true)],
        ];
        let expected = "node    cpu\nnode-1  250\n        true\n";
        assert_eq!(sql_table(&["node".into(), "cpu".into()], &rows), expected);
    }
}
