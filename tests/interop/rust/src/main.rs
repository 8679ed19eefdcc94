//! A workload with the crate `spiffe`, and with tonic where it has no method.
//! tests/interop/foreign.py describes the commands and their output.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use futures_util::future::try_join_all;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair,
    RsaKeyPair,
};
use serde_json::{Value, json};
use spiffe::transport::{Endpoint, connect};
use spiffe::{
    Certificate, JwtSvid, WorkloadApiClient, WorkloadApiError, X509Bundle, X509BundleSet,
    X509Source, X509Svid,
};
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const DEADLINE: Duration = Duration::from_secs(3);
const WRONG_AUDIENCE: &str = "other-audience";
const ANY_AUDIENCE: [&str; 1] = ["any-audience"];

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let operands = &arguments[1..];
    let endpoint = Endpoint::parse(&std::env::var("SPIFFE_ENDPOINT_SOCKET")?)?;
    if arguments[0] == "watch" {
        return watch().await;
    }
    let channel = connect(&endpoint).await?;
    let client = WorkloadApiClient::new_with_channel(endpoint, channel.clone());
    match arguments[0].as_str() {
        "fetch" => report(&fetch(&client, operands).await?),
        "refused" => report(&refused(&client).await),
        "headerless" => report(&headerless(&channel).await),
        "many" => many(&client, operands[0].parse()?).await?,
        "ended" => ended(&client, &channel, &operands[0]).await?,
        other => return Err(format!("no such command: {other}").into()),
    }
    Ok(())
}

async fn fetch(client: &WorkloadApiClient, audiences: &[String]) -> Result<Value, Failure> {
    let context = client.fetch_x509_context().await?;
    let bundles = client.fetch_x509_bundles().await?;
    let mut svids = vec![];
    for svid in context.svids() {
        svids.push(json!({
            "spiffe_id": svid.spiffe_id().to_string(),
            "verified_as": verify(svid, &bundles)?,
            "key_matches": key_matches(svid)?,
        }));
    }
    Ok(json!({
        "svids": svids,
        "x509_bundles": fingerprints(&bundles),
        "x509_svid_bundle": fingerprints(context.bundle_set()),
        "jwt": fetch_jwt(client, audiences).await?,
    }))
}

/// Verify that each certificate is signed by the next and the last by an authority; return the URI.
fn verify(svid: &X509Svid, bundles: &X509BundleSet) -> Result<String, Failure> {
    let bundle = bundles
        .get(svid.spiffe_id().trust_domain())
        .ok_or("no bundle")?;
    let chain = svid.cert_chain();
    for (position, certificate) in chain.iter().enumerate() {
        let issuers = match chain.get(position + 1) {
            Some(issuer) => std::slice::from_ref(issuer),
            None => bundle.authorities(),
        };
        let subject = parse(certificate)?;
        let mut signed = false;
        for issuer in issuers {
            signed |= subject
                .verify_signature(Some(parse(issuer)?.public_key()))
                .is_ok();
        }
        if !signed {
            return Err(format!("certificate {position} has no valid signature").into());
        }
    }
    let leaf = parse(svid.leaf())?;
    let names = leaf
        .subject_alternative_name()?
        .ok_or("no subject alternative name")?;
    let uri = names
        .value
        .general_names
        .iter()
        .find_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        });
    Ok(uri.ok_or("no URI")?)
}

fn parse(certificate: &Certificate) -> Result<X509Certificate<'_>, Failure> {
    Ok(X509Certificate::from_der(certificate.as_bytes())?.1)
}

fn key_matches(svid: &X509Svid) -> Result<bool, Failure> {
    let leaf = parse(svid.leaf())?;
    let wanted: &[u8] = &leaf.public_key().subject_public_key.data;
    let key = svid.private_key().as_bytes();
    let random = SystemRandom::new();
    if let Ok(pair) = RsaKeyPair::from_pkcs8(key) {
        return Ok(pair.public_key().as_ref() == wanted);
    }
    Ok([
        &ECDSA_P256_SHA256_ASN1_SIGNING,
        &ECDSA_P384_SHA384_ASN1_SIGNING,
    ]
    .into_iter()
    .filter_map(|algorithm| EcdsaKeyPair::from_pkcs8(algorithm, key, &random).ok())
    .any(|pair| pair.public_key().as_ref() == wanted))
}

async fn fetch_jwt(client: &WorkloadApiClient, audiences: &[String]) -> Result<Value, Failure> {
    let svid = client.fetch_jwt_svid(audiences, None).await?;
    let bundles = client.fetch_jwt_bundles().await?;
    let (mut by_client, mut by_agent) = (vec![], vec![]);
    for audience in audiences {
        let local = JwtSvid::parse_and_validate(svid.token(), &bundles, &[audience])?;
        let remote = client.validate_jwt_token(audience, svid.token()).await?;
        by_client.push(local.spiffe_id().to_string());
        by_agent.push(remote.spiffe_id().to_string());
    }
    let wrong_here = JwtSvid::parse_and_validate(svid.token(), &bundles, &[WRONG_AUDIENCE]);
    let wrong_there = client
        .validate_jwt_token(WRONG_AUDIENCE, svid.token())
        .await;
    Ok(json!({
        "spiffe_id": svid.spiffe_id().to_string(),
        "audience": svid.audience(),
        "validated_by_client": by_client,
        "validated_by_agent": by_agent,
        "wrong_audience_by_client": refusal(wrong_here),
        "wrong_audience_by_agent": refusal(wrong_there),
    }))
}

async fn refused(client: &WorkloadApiClient) -> Value {
    json!({
        "x509": denial(client.fetch_x509_context().await),
        "x509_bundles": denial(client.fetch_x509_bundles().await),
        "jwt": denial(client.fetch_jwt_svid(ANY_AUDIENCE, None).await),
        "jwt_bundles": denial(client.fetch_jwt_bundles().await),
    })
}

/// Return the error's text with the status code, which the library's text lacks.
fn denial<T>(answer: Result<T, WorkloadApiError>) -> String {
    match answer {
        // The library makes this from PERMISSION_DENIED only.
        Err(error @ WorkloadApiError::NoIdentityIssued) => format!("PermissionDenied: {error}"),
        other => refusal(other),
    }
}

async fn headerless(channel: &Channel) -> Value {
    let mut answers = serde_json::Map::new();
    for (name, method) in [
        ("x509", "FetchX509SVID"),
        ("x509_bundles", "FetchX509Bundles"),
        ("jwt", "FetchJWTSVID"),
        ("jwt_bundles", "FetchJWTBundles"),
    ] {
        let text = match open(channel, method, Request::new(())).await {
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
            Ok(_) => String::new(),
        };
        answers.insert(name.to_owned(), text.into());
    }
    answers.into()
}

/// Call a method with an empty request; the messages of the responses are counted, not parsed.
async fn open(
    channel: &Channel,
    method: &str,
    request: Request<()>,
) -> Result<Streaming<()>, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client
        .ready()
        .await
        .map_err(|error| Status::unknown(error.to_string()))?;
    let path = format!("/SpiffeWorkloadAPI/{method}")
        .parse()
        .expect("a valid path");
    let codec: ProstCodec<(), ()> = ProstCodec::default();
    Ok(client
        .server_streaming(request, path, codec)
        .await?
        .into_inner())
}

async fn watch() -> Result<(), Failure> {
    let source = X509Source::new().await?;
    let mut updates = source.updated();
    loop {
        let svid = source.svid()?;
        let leaf = parse(svid.leaf())?;
        let bundles = source.bundle_set()?;
        let bundle = bundles
            .get(svid.spiffe_id().trust_domain())
            .ok_or("no bundle")?;
        report(&json!({
            "spiffe_id": svid.spiffe_id().to_string(),
            "serial": leaf.raw_serial_as_string(),
            "expires_at": time(&leaf)?,
            "authorities": fingerprints_of(&bundle),
        }));
        updates.changed().await?;
    }
}

fn time(leaf: &X509Certificate<'_>) -> Result<String, Failure> {
    let expiry = leaf.validity().not_after.to_datetime();
    Ok(format!(
        "{}T{:02}:{:02}:{:02}+00:00",
        expiry.date(),
        expiry.hour(),
        expiry.minute(),
        expiry.second()
    ))
}

async fn many(client: &WorkloadApiClient, count: usize) -> Result<(), Failure> {
    let calls = (0..count).map(|position| async move {
        if position % 2 == 0 {
            Ok(client.fetch_x509_svid().await?.spiffe_id().to_string())
        } else {
            jwt(client).await
        }
    });
    report_and_wait(&json!({ "spiffe_ids": try_join_all(calls).await? })).await
}

async fn jwt(client: &WorkloadApiClient) -> Result<String, Failure> {
    Ok(client
        .fetch_jwt_svid(ANY_AUDIENCE, None)
        .await?
        .spiffe_id()
        .to_string())
}

/// End a stream after its first message, between two other calls on the same connection.
///
/// tonic sends the deadline, and leaves it to the server to end a stream that has begun. To drop a
/// stream cancels it; no status comes back then.
async fn ended(client: &WorkloadApiClient, channel: &Channel, how: &str) -> Result<(), Failure> {
    jwt(client).await?;
    let mut request = Request::new(());
    request
        .metadata_mut()
        .insert("workload.spiffe.io", "true".parse()?);
    if how == "deadline" {
        request.set_timeout(DEADLINE);
    }
    let mut answers = open(channel, "FetchX509SVID", request).await?;
    let mut updates = 0;
    let status = loop {
        match answers.message().await {
            Ok(Some(())) => updates += 1,
            Ok(None) => break "OK".to_owned(),
            Err(status) => break format!("{:?}", status.code()),
        }
        if how == "cancel" {
            break "Cancelled".to_owned();
        }
    };
    drop(answers);
    report_and_wait(&json!({"updates": updates, "status": status, "spiffe_id": jwt(client).await?}))
        .await
}

/// Return the texts of the error and its causes; empty for success.
fn refusal<T, E: Error>(answer: Result<T, E>) -> String {
    let Err(error) = answer else {
        return String::new();
    };
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!("; {error}");
        cause = error.source();
    }
    text
}

fn fingerprints(bundles: &X509BundleSet) -> BTreeMap<String, Vec<String>> {
    bundles
        .iter()
        .map(|(domain, bundle)| (domain.to_string(), fingerprints_of(bundle)))
        .collect()
}

fn fingerprints_of(bundle: &X509Bundle) -> Vec<String> {
    let mut found: Vec<String> = bundle
        .authorities()
        .iter()
        .map(|authority| {
            hex(ring::digest::digest(&ring::digest::SHA256, authority.as_bytes()).as_ref())
        })
        .collect();
    found.sort();
    found
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The connection stays open until the test ends the process.
async fn report_and_wait(what: &Value) -> Result<(), Failure> {
    report(what);
    std::future::pending().await
}

fn report(what: &Value) {
    println!("{what}");
}
