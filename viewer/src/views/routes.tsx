/* Information flow routes in a report. */
import { useShown } from "../shared/address";
import type { ViewProps } from "../shared/registry";
import { RoutesView, type RouteData, type RouteShown } from "../shared/routes";

export default function Routes({ id, data, title, drawing }: ViewProps<RouteData>) {
  const [shown, show] = useShown<RouteShown>(id, { threshold: data.threshold, edge: -1, node: "" });
  return <RoutesView data={data} title={title} drawing={drawing!} {...shown} show={show} />;
}
