package main

import (
	"context"
	"embed"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"text/template"
	"time"
)

//go:embed config
var configs embed.FS

func (in *inner) configure(ctx context.Context) error {
	for _, dir := range []string{"cni", "certs", "volplugins", "etcd"} {
		if err := os.MkdirAll(filepath.Join(in.Scratch, dir), 0o755); err != nil {
			return err
		}
	}
	for name, to := range map[string]string{
		"kubelet.yaml": "kubelet.yaml", "kubeconfig": "kubeconfig", "containerd.toml": "containerd.toml", "10-ptp.conflist": "cni/10-ptp.conflist",
	} {
		if err := render(name, filepath.Join(in.Scratch, to), in); err != nil {
			return err
		}
	}
	if err := os.WriteFile(in.cert("tokens.csv"), []byte(in.Token+",admin,admin,system:masters\n"), 0o600); err != nil {
		return err
	}
	return in.run(ctx, "openssl", "genrsa", "-out", in.cert("sa.key"), "2048")
}

func render(name, to string, data any) error {
	t, err := template.ParseFS(configs, "config/"+name)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := t.Execute(f, data); err != nil {
		return err
	}
	return f.Close()
}

func (in *inner) cert(name string) string { return filepath.Join(in.Scratch, "certs", name) }

// controlPlane starts Kubernetes and waits until the node is Ready.
func (in *inner) controlPlane(ctx context.Context) error {
	if err := in.begin("containerd", "containerd", "--config", filepath.Join(in.Scratch, "containerd.toml")); err != nil {
		return err
	}
	if err := in.startAPI(); err != nil {
		return err
	}
	if err := in.await(ctx, "containerd up", time.Minute, func(ctx context.Context) error { return in.run(ctx, "ctr", "version") }); err != nil {
		return err
	}
	if err := in.run(ctx, "ctr", "-n", "k8s.io", "images", "import", filepath.Join(in.Bin, imagesFile)); err != nil {
		return err
	}
	in.say("images imported")
	err := in.await(ctx, "apiserver ready", 3*time.Minute, func(ctx context.Context) error { return in.kubectl(ctx, "get", "--raw", "/readyz") })
	if err != nil {
		return err
	}
	if err := in.startRest(); err != nil {
		return err
	}
	if err := in.await(ctx, "node Ready", 2*time.Minute, func(ctx context.Context) error {
		return in.kubectl(ctx, "wait", "--for=condition=Ready", "node/"+nodeName, "--timeout=10s")
	}); err != nil {
		return err
	}
	return in.await(ctx, "default ServiceAccount", time.Minute, func(ctx context.Context) error {
		return in.kubectl(ctx, "get", "serviceaccount", "default")
	})
}

func (in *inner) startAPI() error {
	const client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	// go build names etcd's program after its directory, server.
	if err := in.begin("etcd", in.program("server"), "--name=e", "--data-dir="+filepath.Join(in.Scratch, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=e="+peer); err != nil {
		return err
	}
	return in.begin("kube-apiserver", in.program("kube-apiserver"), "--etcd-servers="+client,
		"--bind-address=0.0.0.0", "--secure-port=443", "--advertise-address="+nodeIP, "--cert-dir="+in.cert(""),
		"--authorization-mode=Node,RBAC", "--token-auth-file="+in.cert("tokens.csv"), "--allow-privileged=true",
		"--service-cluster-ip-range=10.96.0.0/24", "--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+in.cert("sa.key"), "--service-account-signing-key-file="+in.cert("sa.key"),
		"--endpoint-reconciler-type=none", "--kubelet-preferred-address-types=InternalIP")
}

func (in *inner) startRest() error {
	if err := in.begin("kube-controller-manager", in.program("kube-controller-manager"), "--kubeconfig="+in.kubeconfig, "--leader-elect=false",
		"--service-account-private-key-file="+in.cert("sa.key"), "--root-ca-file="+in.cert("apiserver.crt"),
		"--flex-volume-plugin-dir="+filepath.Join(in.Scratch, "volplugins"), "--bind-address=127.0.0.1"); err != nil {
		return err
	}
	if err := in.begin("kube-scheduler", in.program("kube-scheduler"), "--kubeconfig="+in.kubeconfig, "--leader-elect=false", "--bind-address=127.0.0.1"); err != nil {
		return err
	}
	return in.begin("kubelet", in.program("kubelet"), "--config="+filepath.Join(in.Scratch, "kubelet.yaml"), "--kubeconfig="+in.kubeconfig,
		"--hostname-override="+nodeName, "--node-ip="+nodeIP)
}

func (in *inner) program(name string) string { return filepath.Join(in.Bin, name) }

// begin starts a component, and starts it again when it ends, as systemd would.
func (in *inner) begin(name, program string, args ...string) error {
	log, err := os.OpenFile(filepath.Join(in.Logs, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	start := func() (*exec.Cmd, error) {
		cmd := exec.Command(program, args...)
		cmd.Env = in.environment()
		cmd.Stdout, cmd.Stderr = log, log
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is not for it
		return cmd, cmd.Start()
	}
	cmd, err := start()
	if err != nil {
		return err
	}
	go func() {
		for ; err == nil; cmd, err = start() {
			_ = cmd.Wait()
			time.Sleep(100 * time.Millisecond)
		}
		in.say("%s does not start again: %v", name, err)
	}()
	return nil
}
