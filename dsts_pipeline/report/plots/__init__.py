"""Numbers -> SVG markup. No plot library: text, so that plots follow the page's light or dark
colours, print sharply and stay small. Every text that enters is escaped."""
