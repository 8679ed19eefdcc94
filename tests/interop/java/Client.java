import com.google.gson.Gson;
import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.spiffe.bundle.x509bundle.X509Bundle;
import io.spiffe.bundle.x509bundle.X509BundleSet;
import io.spiffe.svid.jwtsvid.JwtSvid;
import io.spiffe.svid.x509svid.X509Svid;
import io.spiffe.svid.x509svid.X509SvidValidator;
import io.spiffe.workloadapi.DefaultWorkloadApiClient;
import io.spiffe.workloadapi.Watcher;
import io.spiffe.workloadapi.WorkloadApiClient;
import io.spiffe.workloadapi.X509Context;
import io.spiffe.workloadapi.grpc.SpiffeWorkloadAPIGrpc;
import io.spiffe.workloadapi.grpc.SpiffeWorkloadAPIGrpc.SpiffeWorkloadAPIBlockingStub;
import io.spiffe.workloadapi.grpc.Workload;
import io.spiffe.workloadapi.internal.GrpcManagedChannelFactory;
import io.spiffe.workloadapi.internal.SecurityHeaderInterceptor;
import java.net.URI;
import java.security.MessageDigest;
import java.security.Signature;
import java.security.cert.X509Certificate;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;

/**
 * A workload with java-spiffe, and with the gRPC stubs that it contains where it offers no method.
 * tests/interop/foreign.py describes the commands and their output.
 */
final class Client {
  private static final Gson JSON = new Gson();
  private static final String WRONG_AUDIENCE = "other-audience";
  private static final int DEADLINE_SECONDS = 3;

  private interface Call {
    Object run() throws Exception;
  }

  private Client() {}

  public static void main(String[] arguments) throws Exception {
    String operand = arguments.length > 1 ? arguments[1] : "";
    switch (arguments[0]) {
      case "fetch" -> {
        try (WorkloadApiClient client = DefaultWorkloadApiClient.newClient()) {
          report(fetch(client, List.of(arguments).subList(1, arguments.length)));
        }
      }
      case "refused" -> {
        try (WorkloadApiClient client = DefaultWorkloadApiClient.newClient()) {
          report(refused(client));
        }
      }
      case "watch" -> watch();
      case "headerless" -> report(headerless(SpiffeWorkloadAPIGrpc.newBlockingStub(channel())));
      case "many" -> many(stub(), Integer.parseInt(operand));
      case "ended" -> ended(stub(), operand);
      default -> throw new IllegalArgumentException(arguments[0]);
    }
    System.exit(0);
  }

  private static Map<String, Object> fetch(WorkloadApiClient client, List<String> audiences)
      throws Exception {
    X509Context context = client.fetchX509Context();
    X509BundleSet bundles = client.fetchX509Bundles();
    List<Object> svids = new ArrayList<>();
    for (X509Svid svid : context.getX509Svids()) {
      X509SvidValidator.verifyChain(svid.getChain(), bundles);
      svids.add(
          Map.of(
              "spiffe_id", svid.getSpiffeId().toString(),
              "verified_as", uri(svid.getLeaf()),
              "key_matches", keyMatches(svid)));
    }
    return Map.of(
        "svids", svids,
        "x509_bundles", fingerprints(bundles),
        "x509_svid_bundle", fingerprints(context.getX509BundleSet()),
        "jwt", fetchJwt(client, audiences));
  }

  private static String uri(X509Certificate leaf) throws Exception {
    return (String) leaf.getSubjectAlternativeNames().stream()
        .filter(name -> name.get(0).equals(6)) // uniformResourceIdentifier, RFC 5280 4.2.1.6
        .findFirst()
        .orElseThrow()
        .get(1);
  }

  private static boolean keyMatches(X509Svid svid) throws Exception {
    boolean rsa = svid.getPrivateKey().getAlgorithm().equals("RSA");
    Signature signature = Signature.getInstance(rsa ? "SHA256withRSA" : "SHA256withECDSA");
    signature.initSign(svid.getPrivateKey());
    signature.update(new byte[] {1});
    byte[] signed = signature.sign();
    signature.initVerify(svid.getLeaf().getPublicKey());
    signature.update(new byte[] {1});
    return signature.verify(signed);
  }

  private static Map<String, Object> fetchJwt(WorkloadApiClient client, List<String> audiences)
      throws Exception {
    String first = audiences.get(0);
    String[] others = audiences.subList(1, audiences.size()).toArray(new String[0]);
    JwtSvid svid = client.fetchJwtSvid(first, others);
    var bundles = client.fetchJwtBundles();
    List<String> byClient = new ArrayList<>();
    List<String> byAgent = new ArrayList<>();
    for (String audience : audiences) {
      JwtSvid local = JwtSvid.parseAndValidate(svid.getToken(), bundles, Set.of(audience));
      byClient.add(local.getSpiffeId().toString());
      byAgent.add(client.validateJwtSvid(svid.getToken(), audience).getSpiffeId().toString());
    }
    Set<String> wrong = Set.of(WRONG_AUDIENCE);
    return Map.of(
        "spiffe_id", svid.getSpiffeId().toString(),
        "audience", svid.getAudience(),
        "validated_by_client", byClient,
        "validated_by_agent", byAgent,
        "wrong_audience_by_client",
            refusal(() -> JwtSvid.parseAndValidate(svid.getToken(), bundles, wrong)),
        "wrong_audience_by_agent",
            refusal(() -> client.validateJwtSvid(svid.getToken(), WRONG_AUDIENCE)));
  }

  private static Map<String, Object> refused(WorkloadApiClient client) {
    return Map.of(
        "x509", refusal(client::fetchX509Context),
        "x509_bundles", refusal(client::fetchX509Bundles),
        "jwt", refusal(() -> client.fetchJwtSvid("any-audience")),
        "jwt_bundles", refusal(client::fetchJwtBundles));
  }

  private static Map<String, Object> headerless(SpiffeWorkloadAPIBlockingStub stub) {
    return Map.of(
        "x509", refusal(() -> x509(stub)),
        "x509_bundles",
            refusal(
                () ->
                    stub.fetchX509Bundles(Workload.X509BundlesRequest.getDefaultInstance()).next()),
        "jwt", refusal(() -> jwt(stub)),
        "jwt_bundles",
            refusal(
                () -> stub.fetchJWTBundles(Workload.JWTBundlesRequest.getDefaultInstance()).next()));
  }

  private static void watch() throws Exception {
    WorkloadApiClient client = DefaultWorkloadApiClient.newClient();
    client.watchX509Context(
        new Watcher<>() {
          @Override
          public void onUpdate(X509Context context) {
            X509Svid svid = context.getDefaultSvid();
            X509Bundle bundle =
                context.getX509BundleSet().getBundles().get(svid.getSpiffeId().getTrustDomain());
            report(
                Map.of(
                    "spiffe_id", svid.getSpiffeId().toString(),
                    "serial", svid.getLeaf().getSerialNumber().toString(16),
                    "expires_at",
                        svid.getLeaf().getNotAfter().toInstant().toString().replace("Z", "+00:00"),
                    "authorities", fingerprints(bundle)));
          }

          @Override
          public void onError(Throwable error) {
            error.printStackTrace();
          }
        });
    Thread.sleep(Long.MAX_VALUE);
  }

  private static void many(SpiffeWorkloadAPIBlockingStub stub, int count) throws Exception {
    ExecutorService threads = Executors.newFixedThreadPool(count);
    CountDownLatch all = new CountDownLatch(count);
    List<Callable<String>> calls = new ArrayList<>();
    for (int position = 0; position < count; position++) {
      boolean streams = position % 2 == 0;
      calls.add(
          () -> {
            all.countDown();
            all.await();
            return streams ? x509(stub) : jwt(stub);
          });
    }
    List<String> spiffeIds = new ArrayList<>();
    for (Future<String> answer : threads.invokeAll(calls)) {
      spiffeIds.add(answer.get());
    }
    reportAndWait(Map.of("spiffe_ids", spiffeIds));
  }

  /** End a stream after its first message, between two other calls on the same connection. */
  private static void ended(SpiffeWorkloadAPIBlockingStub stub, String how) throws Exception {
    jwt(stub);
    int updates = 0;
    String status = "OK";
    try (Context.CancellableContext context = Context.current().withCancellation()) {
      Context before = context.attach();
      try {
        var limited =
            how.equals("deadline")
                ? stub.withDeadlineAfter(DEADLINE_SECONDS, TimeUnit.SECONDS)
                : stub;
        var answers = limited.fetchX509SVID(Workload.X509SVIDRequest.getDefaultInstance());
        while (answers.hasNext()) {
          answers.next();
          updates++;
          if (how.equals("cancel")) {
            context.cancel(null);
          }
        }
      } catch (RuntimeException error) {
        status = Status.fromThrowable(error).getCode().toString();
      } finally {
        context.detach(before);
      }
    }
    reportAndWait(Map.of("updates", updates, "status", status, "spiffe_id", jwt(stub)));
  }

  private static ManagedChannel channel() {
    URI address = URI.create(System.getenv("SPIFFE_ENDPOINT_SOCKET"));
    return GrpcManagedChannelFactory.newChannel(address, Executors.newCachedThreadPool())
        .getChannel();
  }

  private static SpiffeWorkloadAPIBlockingStub stub() {
    return SpiffeWorkloadAPIGrpc.newBlockingStub(channel())
        .withInterceptors(new SecurityHeaderInterceptor());
  }

  /** Read the first message of a stream, and cancel the stream. */
  private static String x509(SpiffeWorkloadAPIBlockingStub stub) {
    try (Context.CancellableContext context = Context.current().withCancellation()) {
      Context before = context.attach();
      try {
        Iterator<Workload.X509SVIDResponse> answers =
            stub.fetchX509SVID(Workload.X509SVIDRequest.getDefaultInstance());
        return answers.next().getSvids(0).getSpiffeId();
      } finally {
        context.detach(before);
      }
    }
  }

  private static String jwt(SpiffeWorkloadAPIBlockingStub stub) {
    var request = Workload.JWTSVIDRequest.newBuilder().addAudience("any-audience").build();
    return stub.fetchJWTSVID(request).getSvids(0).getSpiffeId();
  }

  /** Return the text of the errors from the library's down to its cause; empty for success. */
  private static String refusal(Call call) {
    StringBuilder text = new StringBuilder();
    try {
      call.run();
    } catch (Exception error) {
      for (Throwable cause = error; cause != null; cause = cause.getCause()) {
        text.append(cause).append("; ");
      }
    }
    return text.toString();
  }

  private static Map<String, Object> fingerprints(X509BundleSet bundles) {
    Map<String, Object> found = new TreeMap<>();
    bundles.getBundles().forEach((domain, bundle) -> found.put(domain.getName(), fingerprints(bundle)));
    return found;
  }

  private static List<String> fingerprints(X509Bundle bundle) {
    return bundle.getX509Authorities().stream().map(Client::fingerprint).sorted().toList();
  }

  private static String fingerprint(X509Certificate certificate) {
    try {
      byte[] digest = MessageDigest.getInstance("SHA-256").digest(certificate.getEncoded());
      return HexFormat.of().formatHex(digest);
    } catch (Exception error) {
      throw new IllegalStateException(error);
    }
  }

  /** The connection stays open until the test ends the process. */
  private static void reportAndWait(Object what) throws InterruptedException {
    report(what);
    Thread.sleep(Long.MAX_VALUE);
  }

  private static void report(Object what) {
    System.out.println(JSON.toJson(what));
  }
}
