package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc/filters"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc/stats"
	"k8s.io/klog/v2"
)

// lastSpans is how long the spans that are left may take at the end.
const lastSpans = 2 * time.Second

// The standard variables that switch traces on as well; the exporter reads them,
// and all others of their kind, by itself.
var otlpVariables = []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"}

func (o *options) traces() bool {
	if o.otlpEndpoint != "" {
		return true
	}
	for _, name := range otlpVariables {
		if os.Getenv(name) != "" {
			return true
		}
	}
	return false
}

func checkOTLP(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("--otlp-endpoint=%s: give http://host:port, or https:// for TLS", endpoint)
	}
	return nil
}

// startTraces has a span made of each call, if somebody wants them. Spans are
// sent in the background; when the collector does not take them they are dropped.
func (ob *observer) startTraces(ctx context.Context, o *options) error {
	if !o.traces() {
		return nil
	}
	log := klog.FromContext(ctx)
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.V(2).Info("Traces", "reason", err.Error()) }))
	var to []otlptracegrpc.Option
	if o.otlpEndpoint != "" {
		to = append(to, otlptracegrpc.WithEndpointURL(o.otlpEndpoint))
	}
	exporter, err := otlptracegrpc.New(ctx, to...) // it connects later
	if err != nil {
		return fmt.Errorf("set up traces: %w", err)
	}
	ob.traces, ob.end = tracing(ctx, o, sdktrace.WithBatcher(exporter))
	log.Info("Sending traces", "endpoint", o.otlpEndpoint)
	return nil
}

// tracing makes spans for a processor. It records neither requests nor replies:
// a span says which method, which volume, how long and with which outcome.
func tracing(ctx context.Context, o *options, to sdktrace.TracerProviderOption) (h stats.Handler, end func()) {
	p := sdktrace.NewTracerProvider(to, sdktrace.WithResource(resource.NewSchemaless(
		attribute.String("service.name", "vhdx-csi"), attribute.String("service.version", version),
		attribute.String("service.instance.id", o.nodeID), attribute.String("vhdx.mode", o.mode),
	)))
	h = otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(p), otelgrpc.WithPropagators(propagation.TraceContext{}),
		otelgrpc.WithFilter(filters.Not(filters.Any(filters.HealthCheck(), filters.MethodName("Probe")))),
	)
	return h, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastSpans)
		defer cancel()
		_ = p.Shutdown(ctx) // what could not be sent is lost, and was told
	}
}
