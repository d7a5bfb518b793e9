package image

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// slim makes the root filesystem what the official slim image is: without
// documentation, and without that of the packages that RUN installs.
const slim = `cd "$1"
printf 'path-exclude=%s\n' '/usr/share/doc/*' '/usr/share/man/*' '/usr/share/locale/*' '/usr/share/info/*' >etc/dpkg/dpkg.cfg.d/slim
echo 'path-include=/usr/share/doc/*/copyright' >>etc/dpkg/dpkg.cfg.d/slim
find usr/share/doc -type f ! -name copyright -delete
rm -rf usr/share/man/* usr/share/locale/* usr/share/info/*`

// Base makes the root filesystem of the recipe, as far as its RUN lines, with
// mmdebstrap, and gives the file. It is kept in dir until the recipe changes.
// scratch should be in memory.
func Base(ctx context.Context, r *Recipe, dir, scratch string) (string, error) {
	args := []string{"--mode=root", "--variant=minbase", "--customize-hook=" + slim}
	for _, run := range r.Run {
		// The hook's shell gives $1; the command itself goes through unseen.
		args = append(args, "--customize-hook=chroot \"$1\" /bin/sh -c "+quote(run))
	}
	args = append(args,
		"--customize-hook=rm -rf \"$1\"/var/cache/apt/*.bin \"$1\"/var/log/*.log \"$1\"/var/log/apt",
		r.Suite)
	sum := sha256.Sum256([]byte(strings.Join(args, "\n")))
	file := filepath.Join(dir, fmt.Sprintf("base-%x.tar", sum[:6]))
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	made := file + ".part.tar"
	// In a mount namespace of its own: what a hook or a kill leaves mounted ends with it.
	cmd := exec.CommandContext(ctx, "unshare", append([]string{"--mount", "--propagation", "private", "--kill-child",
		"--fork", "--pid", "--mount-proc", "mmdebstrap"}, append(args, made)...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+scratch)
	if out, err := cmd.CombinedOutput(); err != nil {
		_ = os.Remove(made)
		return "", fmt.Errorf("mmdebstrap: %w\n%s", err, tail(string(out), 30))
	}
	return file, os.Rename(made, file)
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func tail(s string, lines int) string {
	all := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
