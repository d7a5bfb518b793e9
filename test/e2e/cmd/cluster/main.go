// Command cluster starts a throw-away Kubernetes of one node on this machine,
// installs the driver from a kustomization, runs a command in it (by default a
// shell) with KUBECONFIG set, and exits with the command's status.
//
// Everything runs in mount, process, network, UTS and IPC namespaces of its
// own: nothing listens outside of them, standard paths such as /var/lib/kubelet
// are private, and all processes die with the first one. What namespaces do not
// cover is undone at the end, and at the next start if this process was killed:
// loop devices, cgroups, sysctls, the scratch directory.
//
// There is no network inside. Compile what a command needs before.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

type options struct {
	Bin     string // programs built from this module, images, and what is kept between runs
	Repo    string // the source tree: Dockerfile, deploy
	Plugin  string // directory of vhdx-csi and vhdxctl
	Overlay string // kustomization of the driver
	Version string // of the driver, for the image's tag and labels
	Logs    string // emptied at the start
	Scratch string // on a real disk: overlayfs layers and the pool live here
	Command []string
}

// The program runs itself again inside of the namespaces, under these names.
const (
	asInit  = "cluster-init"
	asInner = "cluster-inner"
)

func main() {
	status, err := 0, error(nil)
	switch filepath.Base(os.Args[0]) {
	case asInit:
		status, err = runInit()
	case asInner:
		status, err = runInner()
	default:
		var o options
		if o, err = parse(); err == nil {
			status, err = runOuter(o)
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "cluster: %v\n", err)
		status = max(status, 1)
	}
	os.Exit(status)
}

func parse() (options, error) {
	var o options
	flag.StringVar(&o.Bin, "bin", "bin/cluster", "directory of the cluster's programs")
	flag.StringVar(&o.Repo, "repo", ".", "the source tree")
	flag.StringVar(&o.Plugin, "plugin", "bin", "directory of vhdx-csi and vhdxctl")
	flag.StringVar(&o.Overlay, "overlay", "deploy/kubernetes/overlays/hostpath", "kustomization to install the driver from")
	flag.StringVar(&o.Version, "version", "unknown", "version of the driver")
	flag.StringVar(&o.Logs, "logs", "bin/cluster/logs", "directory for the logs; emptied first")
	scratch := flag.String("scratch", "/var/tmp", "where to make the scratch directory; a real disk, neither an overlay nor in memory")
	flag.Parse()
	if os.Geteuid() != 0 {
		return o, errors.New("it mounts, and makes namespaces and cgroups: run it as root")
	}
	for _, p := range []*string{&o.Bin, &o.Repo, &o.Plugin, &o.Overlay, &o.Logs, scratch} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return o, err
		}
		*p = abs
	}
	o.Scratch = filepath.Join(*scratch, fmt.Sprintf("%s%d", scratchPrefix, os.Getpid()))
	if o.Command = flag.Args(); len(o.Command) == 0 {
		o.Command = []string{"bash"}
	}
	return o, nil
}
