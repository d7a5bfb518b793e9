// Command csi-node-driver-registrar is a stand-in for the sidecar of that name,
// which is not published as a Go module. It does what kubelet sees of the real
// one: it asks the plugin for its name, serves the registration on a socket in
// kubelet's directory, ends when kubelet refuses it, and removes the socket on
// SIGTERM. Flags of the real one that change nothing here are taken and ignored.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

type registration struct {
	registerapi.UnimplementedRegistrationServer
	info    *registerapi.PluginInfo
	refused chan string
}

func (r *registration) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return r.info, nil
}

func (r *registration) NotifyRegistrationStatus(_ context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	log.Printf("kubelet says: registered %v %s", s.GetPluginRegistered(), s.GetError())
	if !s.GetPluginRegistered() {
		r.refused <- s.GetError()
	}
	return &registerapi.RegistrationStatusResponse{}, nil
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	address := flag.String("csi-address", "/run/csi/socket", "the plugin's socket, as this container sees it")
	endpoint := flag.String("kubelet-registration-path", "", "the plugin's socket, as kubelet sees it")
	dir := flag.String("plugin-registration-path", "/registration", "kubelet's directory of registrations")
	health := flag.String("http-endpoint", "", "address of /healthz; empty for none")
	flag.String("mode", "registration", "ignored")
	flag.Duration("timeout", time.Second, "ignored")
	flag.Int("v", 0, "ignored")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	name, err := driverName(ctx, *address)
	if err != nil {
		return err
	}
	socket := filepath.Join(*dir, name+"-reg.sock")
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return err
	}
	l, err := net.Listen("unix", socket) // its Close removes the socket
	if err != nil {
		return err
	}
	r := &registration{
		info: &registerapi.PluginInfo{
			Type: registerapi.CSIPlugin, Name: name, Endpoint: *endpoint, SupportedVersions: []string{"1.0.0"},
		},
		refused: make(chan string, 1),
	}
	s := grpc.NewServer()
	registerapi.RegisterRegistrationServer(s, r)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	if *health != "" {
		go func() { ended <- serveHealth(*health, socket) }()
	}
	defer s.Stop()
	select {
	case <-ctx.Done():
		return nil
	case why := <-r.refused:
		return fmt.Errorf("kubelet refused the registration: %s", why)
	case err := <-ended:
		return err
	}
}

func driverName(ctx context.Context, address string) (string, error) {
	conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	info, err := csi.NewIdentityClient(conn).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return "", fmt.Errorf("ask the plugin at %s for its name: %w", address, err)
	}
	return info.GetName(), nil
}

// serveHealth answers whether the registration socket is still there.
func serveHealth(address, socket string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if _, err := os.Stat(socket); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	s := &http.Server{Addr: address, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	return s.ListenAndServe()
}
