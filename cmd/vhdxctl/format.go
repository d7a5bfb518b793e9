package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// The formats vhdxctl reads and writes.
const (
	formatVHDX = "vhdx"
	formatRaw  = "raw"
)

// foreign are signatures of formats that others convert.
var foreign = []struct{ name, signature string }{
	{"qcow2", "QFI\xfb"},
	{"vmdk", "KDMV"},
	{"vmdk", "# Disk DescriptorFile"},
	{"vhd", "conectix"},
	{"qed", "QED\x00"},
	{"vdi", "<<< "},
}

// foreignSuffixes name formats that vhdxctl must not write raw data under.
var foreignSuffixes = []string{".qcow2", ".qcow", ".vmdk", ".vhd", ".vpc", ".vdi", ".qed", ".vhds"}

const signatureSize = 32

// probe tells the format of a source by its first bytes.
func probe(r io.ReaderAt, name string) (string, error) {
	head := make([]byte, signatureSize)
	n, err := r.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return formatOf(head[:n], name)
}

func formatOf(head []byte, name string) (string, error) {
	if bytes.HasPrefix(head, []byte("vhdxfile")) {
		return formatVHDX, nil
	}
	for _, f := range foreign {
		if bytes.HasPrefix(head, []byte(f.signature)) {
			return "", fmt.Errorf("%s: it looks like a %s image: %w", name, f.name, errForeign)
		}
	}
	return formatRaw, nil
}

var (
	errForeign = errors.New("vhdxctl reads raw disks and VHDX")
	errFormat  = errors.New("formats are raw and vhdx")
)

func checkFormat(flag, format string) error {
	switch format {
	case "", formatRaw, formatVHDX:
		return nil
	}
	return fmt.Errorf("%s %s: %w", flag, format, errFormat)
}

// formatFor chooses the format of a target: as it was asked for, or by its
// name, or raw, as qemu-img does.
func formatFor(target, asked string) (string, error) {
	if asked != "" {
		return asked, nil
	}
	suffix := strings.ToLower(filepath.Ext(target))
	if suffix == ".vhdx" || suffix == ".avhdx" {
		return formatVHDX, nil
	}
	for _, f := range foreignSuffixes {
		if suffix == f {
			return "", fmt.Errorf("%s: raw data under a name that says %s misleads: say -O raw or -O vhdx: %w", target, suffix[1:], errFormat)
		}
	}
	return formatRaw, nil
}

// kindOf tells files that can be converted from what cannot.
func kindOf(path string) (device bool, err error) {
	st, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	switch mode := st.Mode(); {
	case mode.IsRegular():
		return false, nil
	case mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0:
		return true, nil
	}
	return false, fmt.Errorf("%s: neither a regular file nor a block device (%v)", path, st.Mode().Type())
}
