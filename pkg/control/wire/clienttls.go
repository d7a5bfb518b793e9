package wire

import (
	"crypto/tls"
	"errors"
	"slices"

	"google.golang.org/grpc/credentials"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

var errNotTheNode = errors.New("the certificate there is none of those in the node's record")

// clientTLS accepts these certificates of a server and no others.
func clientTLS(self *Identity, accepted []pool.Certificate) credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, //nolint:gosec // no authority has signed it: VerifyConnection compares it with the pool's word
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return self.current(), nil
		},
		VerifyConnection: func(s tls.ConnectionState) error {
			now := self.now()
			cert, err := peerOf(s, now)
			if err != nil {
				return err
			}
			theirs := fingerprint(cert)
			if !slices.ContainsFunc(accepted, func(c pool.Certificate) bool { return c.SHA256 == theirs && !now.After(c.Until) }) {
				return errNotTheNode
			}
			return nil
		},
	})
}
