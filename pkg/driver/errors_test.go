package driver

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control/wire"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

func TestCodeOf(t *testing.T) {
	for _, tt := range []struct {
		method string
		err    error
		want   codes.Code
	}{
		{"", nil, codes.OK},
		{"", errors.New("anything"), codes.Internal},
		{"", fmt.Errorf("deep: %w", fmt.Errorf("down: %w", pool.ErrNotFound)), codes.NotFound},
		{"", &pool.AttachedError{Volume: "v", Node: "n"}, codes.FailedPrecondition},
		{"", &pool.SpaceError{}, codes.ResourceExhausted},
		{"DeleteVolume", pool.ErrInUse, codes.FailedPrecondition},
		{"ControllerUnpublishVolume", pool.ErrInUse, codes.Aborted},
		{"", &vhdx.CorruptError{}, codes.FailedPrecondition},
		{"", fmt.Errorf("%w: %w", node.ErrUnfinished, node.ErrNoFilesystem), codes.Aborted},
		{"", fmt.Errorf("%w: %w", node.ErrNoFilesystem, syscall.EIO), codes.FailedPrecondition},
		{"", &fs.PathError{Op: "open", Path: "/p", Err: syscall.ESTALE}, codes.Unavailable},
		{"", context.DeadlineExceeded, codes.DeadlineExceeded},
		{"", context.Canceled, codes.Canceled},
		{"", fmt.Errorf("cut: %w", &wire.Error{Node: "n", Code: codes.OutOfRange}), codes.OutOfRange},
		{"", fmt.Errorf("%w: %w", node.ErrUnfinished, &wire.Error{Node: "n", Code: codes.NotFound}), codes.Aborted},
		{"", fmt.Errorf("%w: %w", control.ErrUnreachable, pool.ErrNoNode), codes.Unavailable},
	} {
		if got := codeOf(tt.method, tt.err); got != tt.want {
			t.Errorf("codeOf(%q, %v) = %v, want %v", tt.method, tt.err, got, tt.want)
		}
	}
}

// TestTableIsComplete: every sentinel that the packages below declare has a
// row, or a reason here why it never reaches a call.
func TestTableIsComplete(t *testing.T) {
	unreachable := map[string]string{
		"vhdx.ErrClosed":      "a closed image is the owner's bug",
		"vhdx.ErrJournalFull": "the image answers it by committing",
		"node.ErrStateInUse":  "only at start",
	}
	table, err := os.ReadFile("errors.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"pool", "node", "vhdx", "blockdev", "control"} {
		for _, name := range sentinels(t, filepath.Join("..", dir)) {
			full := dir + "." + name
			has := strings.Contains(string(table), full+",")
			if _, excused := unreachable[full]; has == excused {
				t.Errorf("%s: in the table %v, excused %v", full, has, excused)
			}
		}
	}
}

// sentinels lists the exported error variables of a package.
func sentinels(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no sources in %s (%v)", dir, err)
	}
	var names []string
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, s := range g.Specs {
				if v, ok := s.(*ast.ValueSpec); ok {
					for _, n := range v.Names {
						if strings.HasPrefix(n.Name, "Err") {
							names = append(names, n.Name)
						}
					}
				}
			}
		}
	}
	return names
}

// TestCodesOnlyInTheTable: I-DRV-4.
func TestCodesOnlyInTheTable(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if file == "errors.go" || file == "intercept.go" || strings.HasSuffix(file, "_test.go") {
			continue // intercept.go reads codes to choose how to log
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "grpc/codes") || strings.Contains(string(b), "status.Error") {
			t.Errorf("%s uses gRPC codes", file)
		}
	}
}

func TestScrub(t *testing.T) {
	for in, want := range map[string]string{ //nolint:gosec // no credentials but test data
		"mount -o ro,password=hunter2,vers=3": "mount -o ro,password=***stripped***,vers=3",
		`{"passphrase":"abc"}`:                `{"passphrase":"***stripped***"}`,
		"credentials=/etc/x,uid=1":            "credentials=***stripped***,uid=1",
		"image /p/key.vhdx: not found":        "image /p/key.vhdx: not found",
		"API_TOKEN: abc":                      "API_TOKEN: ***stripped***",
	} {
		if got := scrub(in); got != want {
			t.Errorf("scrub(%q) = %q, want %q", in, got, want)
		}
	}
}
