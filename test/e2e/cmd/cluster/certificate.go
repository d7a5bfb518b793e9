package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// metadataName is the name under which backup programs reach the metadata sidecar.
const metadataName = "vhdx-csi-snapshot-metadata." + namespace

// certify makes, as docs/how-to/incremental-backups.md says, a certificate for
// the metadata sidecar and what tells programs whom to believe.
func certify(ctx context.Context, dir string) error {
	const key = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 "
	for _, args := range []string{
		key + "-keyout ca.key -out ca.crt -subj /CN=" + metadataName + "-ca",
		key + "-keyout tls.key -out tls.crt -CA ca.crt -CAkey ca.key -subj /CN=" + metadataName + " -addext subjectAltName=DNS:" + metadataName +
			" -addext basicConstraints=critical,CA:FALSE",
	} {
		cmd := exec.CommandContext(ctx, "openssl", strings.Fields(args)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("openssl %s: %w: %s", args, err, out)
		}
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return err
	}
	const file = "snapshotmetadataservice.yaml"
	return render(file, filepath.Join(dir, file), map[string]any{"Name": metadataName, "CA": base64.StdEncoding.EncodeToString(ca)})
}
