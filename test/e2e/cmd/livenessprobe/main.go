// Command livenessprobe is a stand-in for the sidecar of that name, which is
// not published as a Go module: /healthz is what the plugin answers to Probe.
// Flags of the real one that change nothing here are taken and ignored.
package main

import (
	"context"
	"flag"
	"log"
	"net/http"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func main() {
	address := flag.String("csi-address", "/run/csi/socket", "the plugin's socket")
	port := flag.String("health-port", "9808", "port of /healthz")
	endpoint := flag.String("http-endpoint", "", "address of /healthz, instead of the port")
	timeout := flag.Duration("probe-timeout", time.Second, "how long the plugin may take to answer")
	flag.String("metrics-path", "", "ignored")
	flag.Int("v", 0, "ignored")
	flag.Parse()

	conn, err := grpc.NewClient("unix://"+*address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	plugin := csi.NewIdentityClient(conn)
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), *timeout)
		defer cancel()
		answer, err := plugin.Probe(ctx, &csi.ProbeRequest{})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if ready := answer.GetReady(); ready != nil && !ready.GetValue() {
			http.Error(w, "the plugin is not ready", http.StatusInternalServerError)
		}
	})
	if *endpoint == "" {
		*endpoint = ":" + *port
	}
	s := &http.Server{Addr: *endpoint, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	log.Fatal(s.ListenAndServe())
}
