//! `ps`, `get`, `images` and `node ls`.

use brig_api::object::{Object, Unit};
use brig_api::{Kind, NamespacePath};
use brig_client::WatchFilter;

use crate::arguments::{Get, Images, Output, Ps};
use crate::failure::Failure;
use crate::output::{Row, json, print, print_item, print_list, table};
use crate::rows::{UnitRow, columns, row};
use crate::target;

use super::{Session, now_ms};

pub(crate) async fn ps(session: &Session<'_>, arguments: &Ps) -> Result<(), Failure> {
    let namespace = session.context.namespace.as_ref();
    let list = session.client.list(Kind::Unit, namespace).await?;
    let units: Vec<&Unit> = list.items.iter().filter_map(unit_of).collect();
    let items: Vec<_> = units.iter().map(|unit| UnitRow::from(*unit)).collect();
    print_list(arguments.output, columns(Kind::Unit), &rows(&list.items), &items)?;
    if arguments.watch {
        watch(session, arguments.output, namespace, list.revision).await?;
    }
    Ok(())
}

fn unit_of(object: &Object) -> Option<&Unit> {
    match object {
        Object::Unit(unit) => Some(unit),
        _ => None,
    }
}

fn rows(objects: &[Object]) -> Vec<Row> {
    let now_ms = now_ms();
    objects.iter().map(|object| row(object, now_ms)).collect()
}

/// One line (or JSON document) for each change, until the user has seen enough.
async fn watch(
    session: &Session<'_>,
    output: Output,
    namespace: Option<&NamespacePath>,
    since: brig_api::Revision,
) -> Result<(), Failure> {
    let filter = WatchFilter { kind: Some(Kind::Unit), namespace: namespace.cloned() };
    let mut stream = session.client.watch(filter, since);
    loop {
        for change in stream.next().await? {
            let text = match &change.object {
                None => format!("{} was removed\n", change.key),
                Some(object) if output == Output::Json => {
                    json(&unit_of(object).map(UnitRow::from))?
                }
                Some(object) => {
                    let text = table(
                        columns(Kind::Unit),
                        &[row(object, now_ms())],
                        output == Output::Wide,
                    );
                    text.lines().skip(1).map(|line| format!("{line}\n")).collect()
                }
            };
            print(&text)?;
        }
    }
}

pub(crate) async fn get(session: &Session<'_>, arguments: &Get) -> Result<(), Failure> {
    let (kind, name) = match (&arguments.name, arguments.kind.split_once('/')) {
        (Some(name), _) => (arguments.kind.as_str(), Some(name.as_str())),
        (None, Some((kind, name))) => (kind, Some(name)),
        (None, None) => (arguments.kind.as_str(), None),
    };
    let kind: Kind = kind.parse().map_err(|error| Failure::usage(format!("{error}")))?;
    match name {
        Some(name) => {
            let key = target::key(kind, name, &session.context.namespace())?;
            let object = session.client.get(&key).await?;
            print_item(arguments.output, columns(kind), row(&object, now_ms()), &object)
        }
        None => list(session, kind, session.context.namespace.as_ref(), arguments.output).await,
    }
}

async fn list(
    session: &Session<'_>,
    kind: Kind,
    namespace: Option<&NamespacePath>,
    output: Output,
) -> Result<(), Failure> {
    let list = session.client.list(kind, namespace).await?;
    print_list(output, columns(kind), &rows(&list.items), &list.items)
}

pub(crate) async fn images(session: &Session<'_>, arguments: &Images) -> Result<(), Failure> {
    list(session, Kind::Artifact, None, arguments.output).await
}

pub(crate) async fn nodes(session: &Session<'_>, output: Output) -> Result<(), Failure> {
    list(session, Kind::Node, None, output).await
}
