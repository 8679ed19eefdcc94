// Command go-spiffe-client is a workload with go-spiffe. tests/interop/foreign.py describes its
// commands and their output.
package main

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sort"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

const patience = 20 * time.Second

type object map[string]any

func main() {
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(command string, arguments []string) error {
	if command == "watch" {
		return watch(context.Background())
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if command == "serve" || command == "dial" {
		return mutualTLS(ctx, command, arguments)
	}
	client, err := workloadapi.New(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	switch command {
	case "fetch":
		return fetch(ctx, client, arguments)
	case "refused":
		return refused(ctx, client)
	}
	return fmt.Errorf("no such command: %s", command)
}

func fetch(ctx context.Context, client *workloadapi.Client, audiences []string) error {
	x509Context, err := client.FetchX509Context(ctx)
	if err != nil {
		return err
	}
	bundles, err := client.FetchX509Bundles(ctx)
	if err != nil {
		return err
	}
	svids := []object{}
	for _, svid := range x509Context.SVIDs {
		verified, _, err := x509svid.Verify(svid.Certificates, bundles)
		if err != nil {
			return err
		}
		public, ok := svid.PrivateKey.Public().(interface{ Equal(crypto.PublicKey) bool })
		svids = append(svids, object{
			"spiffe_id":   svid.ID.String(),
			"verified_as": verified.String(),
			"key_matches": ok && public.Equal(svid.Certificates[0].PublicKey),
		})
	}
	jwt, err := fetchJWT(ctx, client, audiences)
	if err != nil {
		return err
	}
	return report(object{
		"svids":            svids,
		"x509_bundles":     fingerprints(bundles),
		"x509_svid_bundle": fingerprints(x509Context.Bundles),
		"jwt":              jwt,
	})
}

func fetchJWT(ctx context.Context, client *workloadapi.Client, audiences []string) (object, error) {
	svid, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audiences[0], ExtraAudiences: audiences[1:]})
	if err != nil {
		return nil, err
	}
	bundles, err := client.FetchJWTBundles(ctx)
	if err != nil {
		return nil, err
	}
	result := object{"spiffe_id": svid.ID.String(), "audience": svid.Audience}
	byUs, byAgent := []string{}, []string{}
	for _, audience := range audiences {
		local, err := jwtsvid.ParseAndValidate(svid.Marshal(), bundles, []string{audience})
		if err != nil {
			return nil, err
		}
		remote, err := client.ValidateJWTSVID(ctx, svid.Marshal(), audience)
		if err != nil {
			return nil, err
		}
		byUs, byAgent = append(byUs, local.ID.String()), append(byAgent, remote.ID.String())
	}
	_, wrongHere := jwtsvid.ParseAndValidate(svid.Marshal(), bundles, []string{"other-audience"})
	_, wrongThere := client.ValidateJWTSVID(ctx, svid.Marshal(), "other-audience")
	result["validated_by_client"], result["validated_by_agent"] = byUs, byAgent
	result["wrong_audience_by_client"] = text(wrongHere)
	result["wrong_audience_by_agent"] = text(wrongThere)
	return result, nil
}

func refused(ctx context.Context, client *workloadapi.Client) error {
	_, x509Err := client.FetchX509Context(ctx)
	_, bundlesErr := client.FetchX509Bundles(ctx)
	_, jwtErr := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "any-audience"})
	_, jwtBundlesErr := client.FetchJWTBundles(ctx)
	return report(object{
		"x509": text(x509Err), "x509_bundles": text(bundlesErr),
		"jwt": text(jwtErr), "jwt_bundles": text(jwtBundlesErr),
	})
}

func watch(ctx context.Context) error {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	for {
		svid, err := source.GetX509SVID()
		if err != nil {
			return err
		}
		bundle, err := source.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
		if err != nil {
			return err
		}
		err = report(object{
			"spiffe_id":   svid.ID.String(),
			"serial":      svid.Certificates[0].SerialNumber.Text(16),
			"expires_at":  svid.Certificates[0].NotAfter.Format(time.RFC3339),
			"authorities": fingerprintsOf(bundle.X509Authorities()),
		})
		if err != nil {
			return err
		}
		<-source.Updated()
	}
}

// mutualTLS is one end of a mutual TLS connection; it accepts each peer of the same trust domain.
func mutualTLS(ctx context.Context, command string, arguments []string) error {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	svid, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	allowed := tlsconfig.AuthorizeMemberOf(svid.ID.TrustDomain())
	if command == "dial" {
		connection, err := spiffetls.DialWithMode(ctx, "tcp", net.JoinHostPort("127.0.0.1", arguments[0]),
			spiffetls.MTLSClientWithSource(allowed, source))
		if err != nil {
			return report(object{"refused": err.Error()})
		}
		return confirm(connection)
	}
	listener, err := spiffetls.ListenWithMode(ctx, "tcp", "127.0.0.1:0", spiffetls.MTLSServerWithSource(allowed, source))
	if err != nil {
		return err
	}
	defer listener.Close()
	if err := report(object{"port": listener.Addr().(*net.TCPAddr).Port}); err != nil {
		return err
	}
	connection, err := listener.Accept()
	if err != nil {
		return err
	}
	return confirm(connection)
}

// confirm exchanges a byte, which confirms the handshake to both ends, and reports the peer.
func confirm(connection net.Conn) error {
	defer connection.Close()
	if _, err := connection.Write([]byte("!")); err != nil {
		return report(object{"refused": err.Error()})
	}
	if _, err := connection.Read(make([]byte, 1)); err != nil {
		return report(object{"refused": err.Error()})
	}
	peer, err := spiffetls.PeerIDFromConn(connection)
	if err != nil {
		return err
	}
	return report(object{"peer": peer.String()})
}

func fingerprints(bundles *x509bundle.Set) object {
	result := object{}
	for _, bundle := range bundles.Bundles() {
		result[bundle.TrustDomain().Name()] = fingerprintsOf(bundle.X509Authorities())
	}
	return result
}

func fingerprintsOf(certificates []*x509.Certificate) []string {
	result := []string{}
	for _, certificate := range certificates {
		sum := sha256.Sum256(certificate.Raw)
		result = append(result, hex.EncodeToString(sum[:]))
	}
	sort.Strings(result)
	return result
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func report(what object) error {
	return json.NewEncoder(os.Stdout).Encode(what)
}
