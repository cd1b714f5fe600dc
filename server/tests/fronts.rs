//! What each front of a node answers to clients that are not Galoo's own: gRPC's health and reflection, HTTP, and the
//! Postgres protocol through tokio-postgres and psql.

mod support;

use std::{
    error::Error,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    pin::Pin,
};

use bytes::BytesMut;
use futures::{StreamExt, TryStreamExt};
use support::{Row, Server, done};
use tokio_postgres::{
    Client, NoTls, RowStream,
    types::{Format, IsNull, ToSql, Type},
};
use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

/// More rows than any socket holds, so that the statement runs until something ends it.
const ENDLESS: &str = "select * from generate_series(1, 1000000000000)";

/// A server with the game `g`, which has an event.
fn server_with_game(folder: &Path) -> Server {
    let server = Server::start(&folder.join("data"), &[]);
    let addr = server.grpc().to_string();
    for arguments in [&["game", "create", "g"][..], &["append", "--game", "g", "ann", "login"]] {
        let output = support::galoo(&[arguments, &["--addr", &addr]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    server
}

fn connect(server: &Server) -> Client {
    let address = server.pg();
    let mut config = tokio_postgres::Config::new();
    config.host(address.ip().to_string()).port(address.port()).dbname("g").user("galoo");
    done(async {
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    })
}

/// The SQLSTATE of an error.
fn code(error: &tokio_postgres::Error) -> String {
    error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned())
}

/// Starts the endless statement; it runs when this returns.
fn start_endless(client: &Client) -> Pin<Box<RowStream>> {
    done(async {
        let mut rows = Box::pin(client.query_raw(ENDLESS, std::iter::empty::<i32>()).await?);
        assert!(rows.try_next().await?.is_some(), "the first row comes");
        Ok(rows)
    })
}

/// Reads rows until their statement ends, and returns the SQLSTATE.
async fn end_of(mut rows: Pin<Box<RowStream>>) -> anyhow::Result<String> {
    while let Some(row) = rows.next().await {
        if let Err(error) = row {
            return Ok(code(&error));
        }
    }
    anyhow::bail!("an endless statement ended well")
}

#[test]
fn grpc_tells_its_health_and_its_services() {
    let folder = tempfile::tempdir().expect("folder");
    let server = Server::start(&folder.path().join("data"), &[]);
    let names = done(async {
        let channel = Endpoint::from_shared(format!("http://{}", server.grpc()))?.connect().await?;
        for service in ["", "galoo.data.v1.Data", "galoo.admin.v1.Admin"] {
            let request = HealthCheckRequest { service: service.to_owned() };
            let mut told = HealthClient::new(channel.clone()).watch(request).await?.into_inner();
            // The first answer may be from just before clients were let through.
            loop {
                let answer = told.message().await?.ok_or_else(|| anyhow::anyhow!("{service:?}: no answer"))?;
                if answer.status() == ServingStatus::Serving {
                    break;
                }
            }
        }
        let list = MessageRequest::ListServices(String::new());
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(list) };
        let asked = ServerReflectionClient::new(channel).server_reflection_info(tokio_stream::once(request)).await?;
        match asked.into_inner().message().await?.and_then(|answer| answer.message_response) {
            Some(MessageResponse::ListServicesResponse(list)) => {
                Ok(list.service.into_iter().map(|service| service.name).collect::<Vec<_>>())
            }
            other => anyhow::bail!("no list of services: {other:?}"),
        }
    });
    for service in [
        "galoo.data.v1.Data",
        "galoo.admin.v1.Admin",
        "galoo.peer.v1.Peer",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
    ] {
        assert!(names.iter().any(|name| name == service), "{service} is not among {names:?}");
    }
    assert!(server.stop().success());
}

/// Asks for a path over HTTP and returns the whole answer.
fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connects");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: galoo\r\nConnection: close\r\n\r\n").expect("asks");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answers");
    answer
}

#[test]
fn http_tells_that_the_node_lives_and_its_metrics() {
    let folder = tempfile::tempdir().expect("folder");
    let server = server_with_game(folder.path());
    let health = get(server.http(), "/healthz");
    assert!(health.starts_with("HTTP/1.1 200") && health.ends_with("ok\n"), "{health}");
    let metrics = get(server.http(), "/metrics");
    assert!(metrics.starts_with("HTTP/1.1 200") && metrics.contains("galoo_events_stored_total 1"), "{metrics}");
    assert!(get(server.http(), "/other").starts_with("HTTP/1.1 404"));
    assert!(server.stop().success());
}

/// A parameter that is sent as text, whatever its type.
#[derive(Debug)]
struct AsText(&'static str);

impl ToSql for AsText {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn to_sql_checked(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        self.to_sql(kind, out)
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }
}

#[test]
fn parameters_are_taken_as_text_and_as_binary() {
    let folder = tempfile::tempdir().expect("folder");
    let server = server_with_game(folder.path());
    let client = connect(&server);
    let parameters: [&[&(dyn ToSql + Sync)]; 2] = [&[&41_i64, &"ann"], &[&AsText("41"), &AsText("ann")]];
    for parameters in parameters {
        let sql = "select $1::bigint + 1, player_id from events where player_id = $2";
        let row = done(async { Ok(client.query_one(sql, parameters).await?) });
        assert_eq!((row.get::<_, i64>(0), row.get::<_, &str>(1)), (42, "ann"), "{parameters:?}");
    }
    drop(client);
    assert!(server.stop().success());
}

#[test]
fn transactions_hold_their_state_and_writes_are_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let server = server_with_game(folder.path());
    let client = connect(&server);
    let run = |sql: &str| done(async { Ok(client.batch_execute(sql).await.map_err(|error| code(&error))) });
    let refused = |state: &str| Err(state.to_owned());
    assert_eq!(run("BEGIN; select count(*) from events; COMMIT"), Ok(()));
    assert_eq!(run("BEGIN"), Ok(()));
    assert_eq!(run("insert into events values (1)"), refused("25006"));
    assert_eq!(run("select 1"), refused("25P02"));
    // A failed block commits as a rollback, and the session goes on.
    assert_eq!(run("COMMIT"), Ok(()));
    assert_eq!(run("select 1"), Ok(()));
    assert_eq!(run("update events set player_id = 'bob'"), refused("25006"));
    assert_eq!(run("delete from events"), refused("25006"));
    drop(client);
    assert!(server.stop().success());
}

#[test]
fn a_running_query_ends_when_its_client_cancels_it() {
    let folder = tempfile::tempdir().expect("folder");
    let server = server_with_game(folder.path());
    let client = connect(&server);
    let rows = start_endless(&client);
    let ended = done(async {
        client.cancel_token().cancel_query(NoTls).await?;
        end_of(rows).await
    });
    assert_eq!(ended, "57014");
    // The connection goes on.
    let row = done(async { Ok(client.query_one("select count(*) from events", &[]).await?) });
    assert_eq!(row.get::<_, i64>(0), 1);
    drop(client);
    assert!(server.stop().success());
}

#[test]
fn a_running_query_is_told_that_the_server_stops() {
    let folder = tempfile::tempdir().expect("folder");
    let server = server_with_game(folder.path());
    let client = connect(&server);
    let rows = start_endless(&client);
    let reading = done(async { Ok(tokio::spawn(end_of(rows))) });
    assert!(server.stop().success());
    assert_eq!(done(async { reading.await? }), "57P01");
}

#[test]
fn psql_lists_and_describes_tables() {
    let folder = tempfile::tempdir().expect("folder");
    let server = server_with_game(folder.path());
    let ask = |command: &str| support::psql(server.pg().port(), "g", command).expect(command);
    let has = |rows: &[Row], place: usize, text: &str| {
        rows.iter().any(|row| row.get(place).is_some_and(|cell| cell.as_deref() == Some(text)))
    };
    let tables = ask("\\dt");
    for table in ["events", "state"] {
        assert!(has(&tables, 1, table), "{table} is not among {tables:?}");
    }
    let columns = ask("\\d events");
    for column in ["player_id", "event_type"] {
        assert!(has(&columns, 0, column), "{column} is not among {columns:?}");
    }
    let subquery = "select (select nspname from pg_namespace n where n.oid = c.relnamespace), \
                    exists(select 1 from pg_attribute a where a.attrelid = c.oid) \
                    from pg_class c where relname = 'events'";
    assert_eq!(ask(subquery), [[Some("public".to_owned()), Some("t".to_owned())]]);
    assert!(server.stop().success());
}
